//! Plots as SVG, without scripts and without references to other files.

use std::fmt::Write as _;

use super::report::number_text;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 220.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [64.0, 12.0, 26.0, 36.0];
/// One for each side; they differ for people who do not see all colours.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"];

/// A named line of points.
pub(super) type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// The colour of a side.
pub(super) fn colour(side: usize) -> &'static str {
    COLOURS[side % COLOURS.len()]
}

/// Lines over a common axis; with `log_x`, tenfold steps have equal widths. Empty without points.
pub(super) fn lines(title: &str, x_label: &str, log_x: bool, lines: &[Line<'_>]) -> String {
    let place = |x: f64| if log_x { x.max(1e-6).log10() } else { x };
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let (low, high) = points()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (x, _)| (low.min(place(*x)), high.max(place(*x))));
    if low > high {
        return String::new();
    }
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let [left, right, above, below] = MARGIN;
    let across = |x: f64| left + (place(x) - low) / (high - low).max(1e-9) * (WIDTH - left - right);
    let up = |y: f64| HEIGHT - below - y / top * (HEIGHT - above - below);
    let mut svg = opening(title);
    axis_y(&mut svg, top);
    let ends = [low, f64::midpoint(low, high), high].map(|x| if log_x { 10f64.powf(x) } else { x });
    for x in ends {
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{:.1}' text-anchor='middle'>{}</text>",
            across(x),
            HEIGHT - below + 14.0,
            number_text(x)
        );
    }
    let _ = write!(svg, "<text x='{:.1}' y='{:.1}' text-anchor='middle'>{x_label}</text>", WIDTH / 2.0, HEIGHT - 6.0);
    for (side, (_, points)) in lines.iter().enumerate() {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        let _ = write!(
            svg,
            "<polyline points='{}' fill='none' stroke='{}' stroke-width='1.6'/>",
            path.join(" "),
            colour(side)
        );
    }
    svg + "</svg>"
}

/// One bar for each side, with a dot for each round.
pub(super) fn bars(title: &str, bars: &[(&str, f64, Vec<f64>)]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let top = bars.iter().flat_map(|(_, bar, rounds)| rounds.iter().chain([bar])).copied().fold(0.0, f64::max);
    let top = top.max(f64::MIN_POSITIVE);
    let [left, right, above, below] = MARGIN;
    let step = (WIDTH - left - right) / bars.len() as f64;
    let up = |y: f64| HEIGHT - below - y / top * (HEIGHT - above - below);
    let mut svg = opening(title);
    axis_y(&mut svg, top);
    for (side, (name, bar, rounds)) in bars.iter().enumerate() {
        let middle = left + step * (side as f64 + 0.5);
        let _ = write!(
            svg,
            "<rect x='{:.1}' y='{:.1}' width='{:.1}' height='{:.1}' fill='{}' fill-opacity='0.7'/>",
            middle - step * 0.3,
            up(*bar),
            step * 0.6,
            up(0.0) - up(*bar),
            colour(side)
        );
        for round in rounds {
            let _ = write!(svg, "<circle cx='{middle:.1}' cy='{:.1}' r='2.2' fill='#222'/>", up(*round));
        }
        let label = format!("{name} {}", number_text(*bar));
        let _ =
            write!(svg, "<text x='{middle:.1}' y='{:.1}' text-anchor='middle'>{label}</text>", HEIGHT - below + 14.0);
    }
    svg + "</svg>"
}

fn opening(title: &str) -> String {
    format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img'><title>{title}</title>\
         <text x='{:.1}' y='15' text-anchor='middle' font-weight='bold'>{title}</text>",
        WIDTH / 2.0
    )
}

fn axis_y(svg: &mut String, top: f64) {
    let [left, right, above, below] = MARGIN;
    for part in [0.0, 0.5, 1.0] {
        let y = HEIGHT - below - part * (HEIGHT - above - below);
        let _ = write!(
            svg,
            "<line x1='{left}' x2='{:.1}' y1='{y:.1}' y2='{y:.1}' stroke='#ccc'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>",
            WIDTH - right,
            left - 4.0,
            y + 4.0,
            number_text(top * part)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_within_the_axes() {
        let svg = lines("latency", "ms", true, &[("a", vec![(0.1, 5.0), (1.0, 10.0), (10.0, 0.0)]), ("b", vec![])]);
        // Left, middle and right: tenfold steps of one width.
        assert!(svg.contains("points='64.0,105.0 256.0,26.0 448.0,184.0'"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(lines("latency", "ms", true, &[("a", vec![])]), "");
    }

    #[test]
    fn a_bar_is_as_high_as_its_part_of_the_highest() {
        let svg = bars("cpu", &[("a", 5.0, vec![5.0, 10.0]), ("b", 10.0, vec![])]);
        assert!(svg.contains("height='79.0'") && svg.contains("height='158.0'"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(bars("cpu", &[]), "");
        // Nothing but zeros is drawn, too.
        assert!(!bars("cpu", &[("a", 0.0, vec![0.0])]).contains("NaN"));
    }
}
