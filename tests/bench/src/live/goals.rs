//! What live migration through agents is meant to reach, and whether it did.

use serde::Serialize;

use super::figures::{Ratio, Section};
use super::ways::Way;
use crate::cli::Pace;

#[derive(Debug, Serialize)]
pub struct Goal {
    pub mbit: Option<u32>,
    pub pace: Pace,
    pub of: &'static str,
    pub peer: Way,
    /// Not a number where nothing was measured.
    pub ratio: f64,
    pub at_most: f64,
    pub is_met: bool,
}

/// Of what, to whom, at most; and what it is.
type Wanted = (&'static str, Way, f64, fn(&Ratio) -> f64);

const DOWNTIME: Wanted = ("downtime", Way::Plain, 1.0, |ratio| ratio.downtime);

const LIMITED: [Wanted; 3] = [
    ("bytes", Way::MultifdZstd, 0.8, |ratio| ratio.bytes),
    ("time", Way::MultifdZstd, 0.8, |ratio| ratio.wall),
    DOWNTIME,
];

const UNLIMITED: [Wanted; 2] = [("time", Way::Plain, 1.3, |ratio| ratio.wall), DOWNTIME];

pub fn judge(sections: &[Section]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for section in sections {
        let wanted: &[Wanted] = if section.mbit.is_some() { &LIMITED } else { &UNLIMITED };
        for (of, peer, at_most, value) in wanted {
            let found = section.ratios.iter().find(|ratio| ratio.peer == *peer);
            let ratio = found.map_or(f64::NAN, value);
            goals.push(Goal {
                mbit: section.mbit,
                pace: section.pace,
                of,
                peer: *peer,
                ratio,
                at_most: *at_most,
                is_met: ratio <= *at_most,
            });
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::section;
    use super::*;

    #[test]
    fn each_line_has_its_own_goals() {
        let goals = judge(&[section(Some(200)), section(None)]);
        let told: Vec<_> = goals.iter().map(|goal| (goal.of, goal.peer, goal.is_met)).collect();
        assert_eq!(
            told,
            [
                ("bytes", Way::MultifdZstd, true),
                ("time", Way::MultifdZstd, true),
                ("downtime", Way::Plain, true),
                ("time", Way::Plain, true),
                ("downtime", Way::Plain, true),
            ]
        );
        let mut unheard = section(None);
        unheard.ratios[0].downtime = f64::NAN;
        assert!(!judge(&[unheard])[1].is_met);
    }
}
