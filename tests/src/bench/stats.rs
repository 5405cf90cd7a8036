//! Medians and quartiles of rounds, and of the paired ratios between two variants.
//!
//! A ratio is taken round by round: what disturbs a round disturbs both of its halves.
use serde::{Deserialize, Serialize};

/// Five numbers of a series.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Summary {
    pub min: f64,
    pub q1: f64,
    pub median: f64,
    pub q3: f64,
    pub max: f64,
}

impl Summary {
    /// `None` for an empty series.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Some(Self { min, q1: at(0.25), median: at(0.5), q3: at(0.75), max })
    }

    /// How often `ours` goes into `theirs`, round by round: above 1, ours is cheaper.
    pub fn of_ratios(theirs: &[f64], ours: &[f64]) -> Option<Self> {
        Self::of(theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_neighbours() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        let Summary { min, q1, median, q3, max } = summary;
        assert_eq!([min, q1, median, q3, max], [1.0, 1.75, 2.5, 3.25, 4.0]);
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_ratio_pairs_the_rounds_and_not_the_medians() {
        let summary = Summary::of_ratios(&[10.0, 40.0, 90.0], &[5.0, 10.0, 90.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 2.0, 4.0));
    }
}
