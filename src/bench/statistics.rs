//! What is made of several runs.

/// The middle value; of an even number, the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Distance of the quartiles, relative to the median.
pub(super) fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    match median(values) {
        Some(median) if median != 0.0 => (sorted[last - last / 4] - sorted[last / 4]) / median,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_run_of_five_does_not_spread() {
        assert!(spread(&[10.0, 10.5, 9.9, 10.1, 30.0]) < 0.1);
        assert_eq!(spread(&[10.0, 20.0]), 10.0 / 15.0);
        assert_eq!((spread(&[]), spread(&[0.0, 0.0])), (0.0, 0.0));
    }
}
