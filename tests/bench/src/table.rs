//! Figures as people read them.

use std::fmt::Write as _;

use crate::counters::Load;
use crate::figures::{Report, SectionReport};

const MIB: u64 = 1 << 20;

pub fn render(report: &Report) -> String {
    let mut text = format!(
        "source        {} MiB ({} bytes), {} MiB of it allocated\n\
         machine       {} CPUs, load before start {}\n\
         rounds        {}, medians; TCP {}\n",
        report.source_bytes / MIB,
        report.source_bytes,
        report.source_allocated_bytes / MIB,
        report.cpus,
        load(report.load_before),
        report.rounds,
        report.congestion_control,
    );
    for section in &report.sections {
        render_section(section, &mut text);
    }
    text
}

fn render_section(section: &SectionReport, text: &mut String) {
    let name = section.section.name();
    let _ = writeln!(text, "\n{name}, load before {}", load(section.load_before));
    let _ = writeln!(text, "  {:<16} {:>8} {:>8} {:>9}  cipher", "", "wall s", "CPU s", "wire MB");
    for one in &section.contenders {
        let _ = writeln!(
            text,
            "  {:<16} {:>8.2} {:>8.2} {:>9.1}  {}",
            one.entrant.name,
            one.median.wall_s,
            one.median.cpu_s,
            one.median.wire_bytes / 1e6,
            one.entrant.cipher
        );
    }
    let _ = writeln!(
        text,
        "\n  {:<29} {:>5} {:>13} {:>6} {:>6}",
        "ratio, below 1: we cost less", "wall", "(range)", "CPU", "wire"
    );
    for ratio in &section.ratios {
        let pair = format!("{} / {}", ratio.ours, ratio.peer);
        let range = format!("({:.2}-{:.2})", ratio.wall_range[0], ratio.wall_range[1]);
        let _ = writeln!(
            text,
            "  {pair:<29} {:>5.2} {range:>13} {:>6.2} {:>6.2}",
            ratio.wall, ratio.cpu, ratio.wire
        );
    }
}

pub fn load(load: Load) -> String {
    load.0.map(|average| format!("{average:.2}")).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_contender_and_every_pair() {
        let report = Report {
            load_before: Load([0.5, 1.0, 1.5]),
            cpus: 2,
            rounds: 3,
            source_bytes: 3 * MIB,
            source_allocated_bytes: MIB,
            congestion_control: "cubic".to_owned(),
            sections: vec![crate::figures::tests::section()],
        };
        let text = render(&report);
        for expected in [
            "3 MiB (3145728 bytes), 1 MiB of it allocated",
            "load before start 0.50 1.00 1.50",
            "  causeway-0           1.10     0.55       1.5  none\n",
            "  causeway-0 / nbdcopy           0.90   (0.50-1.10)   0.90   1.00\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
