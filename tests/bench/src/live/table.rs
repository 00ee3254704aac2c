//! Figures as people read them.

use std::fmt::Write as _;

use super::figures::{Report, Section};
use super::goals::Goal;
use crate::table::load;

pub fn render(report: &Report) -> String {
    let mut text = format!(
        "guest         {} MiB of memory, {} MiB of its disk allocated\n\
         machine       {} CPUs, load before start {}\n\
         rounds        {}, medians; TCP {}\n",
        report.memory_mib,
        report.disk_allocated_bytes >> 20,
        report.cpus,
        load(report.load_before),
        report.rounds,
        report.congestion_control,
    );
    for section in &report.sections {
        render_section(section, &mut text);
    }
    let _ = writeln!(text, "\ngoals");
    for goal in &report.goals {
        render_goal(goal, &mut text);
    }
    text
}

fn render_section(section: &Section, text: &mut String) {
    let _ = writeln!(
        text,
        "\n{}, {} changes ({} MiB/s asked for), load before {}",
        section.line(),
        section.pace.name(),
        section.rate,
        load(section.load_before)
    );
    let _ = writeln!(
        text,
        "  {:<16} {:>7} {:>9} {:>8} {:>8} {:>10} {:>8} {:>7} {:>10}",
        "", "wall s", "wire MB", "back MB", "down ms", "(before)", "QEMU ms", "rounds", "MiB/s"
    );
    for way in &section.ways {
        let _ = writeln!(
            text,
            "  {:<16} {:>7.1} {:>9.1} {:>8.1} {:>8.0} {:>10.0} {:>8} {:>7} {:>10.1}",
            way.way.name(),
            way.wall_s,
            way.out_bytes / 1e6,
            way.back_bytes / 1e6,
            way.downtime_ms,
            way.noise_ms,
            known(way.qemu_downtime_ms),
            known(way.rounds_of_memory),
            way.changes_mib_s,
        );
    }
    let _ = writeln!(
        text,
        "\n  {:<30} {:>6} {:>6} {:>6}",
        "ratio, below 1: we cost less", "wall", "wire", "down"
    );
    for ratio in &section.ratios {
        let pair = format!("agents / {}", ratio.peer.name());
        let _ = writeln!(
            text,
            "  {pair:<30} {:>6.2} {:>6.2} {:>6.2}",
            ratio.wall, ratio.bytes, ratio.downtime
        );
    }
}

/// libvirt forgets how a VM came that its agent held afterwards.
fn known(median: f64) -> String {
    if median.is_nan() { "-".to_owned() } else { format!("{median:.0}") }
}

fn render_goal(goal: &Goal, text: &mut String) {
    let line = goal.mbit.map_or_else(|| "no limit".to_owned(), |mbit| format!("{mbit} Mbit/s"));
    let _ = writeln!(
        text,
        "  {line:<12} {:<5} {:<9} agents / {:<15} {:>5.2}, at most {:.1}: {}",
        goal.pace.name(),
        goal.of,
        goal.peer.name(),
        goal.ratio,
        goal.at_most,
        if goal.is_met {
            "met"
        } else if goal.ratio.is_nan() {
            "not measured"
        } else {
            "not met"
        },
    );
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::section;
    use super::super::goals::judge;
    use super::*;
    use crate::counters::Load;

    #[test]
    fn the_table_shows_every_way_every_pair_and_every_goal() {
        let sections = vec![section(Some(200)), section(None)];
        let report = Report {
            load_before: Load([0.5, 1.0, 1.5]),
            cpus: 2,
            rounds: 2,
            memory_mib: 768,
            disk_allocated_bytes: 400 << 20,
            congestion_control: "cubic".to_owned(),
            goals: judge(&sections),
            sections,
        };
        let text = render(&report);
        for expected in [
            "768 MiB of memory, 400 MiB of its disk allocated",
            "200 Mbit/s, low changes (1 MiB/s asked for), load before 1.00 2.00 3.00",
            "  plain               14.0 ",
            "  agents / plain                   0.62   0.50   0.90\n",
            "  no limit     low   time      agents / plain            0.62, at most 1.3: met\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
