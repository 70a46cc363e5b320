//! The report as one HTML file.

use std::fmt::Write as _;

use super::judge::Verdict;
use super::load::{CPU, CPU_PER_GIGABYTE, Sample};
use super::plot::{Line, bars, colour, lines};
use super::report::{Report, RowReport, number_text, value_text};
use crate::bench::statistics::median;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;max-width:1500px}table{border-collapse:collapse}\
th,td{padding:2px 10px;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child,td:last-child{text-align:left}\
svg text{font:11px system-ui,sans-serif;fill:#333}svg{margin:6px}.aim{background:#d6f0d6}.floor{background:#eef6e4}\
.below{background:#f9d8d0}.note{color:#8a4b00}code{background:#f4f4f4}h2{margin:1.6em 0 .3em}";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let [ours, peer] = &report.programs;
    let mut html = format!(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>watershed bench suite</title><style>{STYLE}</style>\
         <h1>watershed bench suite</h1><p>{} against {}; medians of {} rounds of {} s in turns. {}.</p><p>{} figures at their \
         aim, {} at their floor, {} below it; {} rows not run.</p>",
        escaped(ours),
        escaped(peer),
        report.rounds,
        report.seconds,
        escaped(&report.machine),
        report.count(Verdict::Aim),
        report.count(Verdict::Floor),
        report.count(Verdict::Below),
        report.not_run(),
    );
    for row in &report.rows {
        section(&mut html, row);
    }
    html + "</html>\n"
}

fn section(html: &mut String, row: &RowReport) {
    let _ = write!(html, "<h2>{}</h2><p><code>{}</code></p>", row.name, escaped(row.what));
    if let Some(reason) = &row.not_run {
        let _ = write!(html, "<p class='note'>not run: {}</p>", escaped(reason));
        return;
    }
    if let Some(noise) = &row.noise {
        let _ = write!(html, "<p class='note'>too noisy to judge: {}</p>", escaped(noise));
    }
    for note in &row.notes {
        let _ = write!(html, "<p class='note'>{}</p>", escaped(note));
    }
    table(html, row);
    plots(html, row);
}

fn table(html: &mut String, row: &RowReport) {
    html.push_str("<table><tr><th>figure</th>");
    for (side, name) in row.sides.iter().enumerate() {
        let _ = write!(html, "<th style='color:{}'>{name}</th>", colour(side));
    }
    html.push_str("<th>value</th><th>floor</th><th>aim</th><th></th></tr>");
    for figure in &row.figures {
        let class = match figure.verdict {
            Verdict::Aim => "aim",
            Verdict::Floor => "floor",
            Verdict::Below => "below",
            Verdict::None => "",
        };
        let _ = write!(html, "<tr class='{class}'><td>{}</td>", figure.figure);
        let numbers = figure.medians.iter().copied().map(|median| median.map(number_text));
        let marks = [Some(value_text(figure)), figure.floor.map(number_text), figure.aim.map(number_text)];
        for cell in numbers.chain(marks) {
            let _ = write!(html, "<td>{}</td>", cell.unwrap_or_default());
        }
        let _ = write!(html, "<td>{}</td></tr>", escaped(&row.verdict_text(figure)));
    }
    html.push_str("</table>");
}

fn plots(html: &mut String, row: &RowReport) {
    let of = |make: fn(&[Sample]) -> Vec<(f64, f64)>| -> Vec<Line<'_>> {
        row.sides.iter().zip(&row.samples).map(|(side, samples)| (*side, make(samples))).collect()
    };
    html.push_str("<div>");
    html.push_str(&lines("latency: share of answers", "ms", true, &of(latencies)));
    html.push_str(&lines("operations per second, last round", "s", false, &of(rates)));
    for figure in [CPU, CPU_PER_GIGABYTE] {
        let sides = row.sides.iter().zip(&row.samples).filter_map(|(side, samples)| {
            let rounds: Vec<f64> = samples.iter().filter_map(|sample| sample.figures.get(figure).copied()).collect();
            Some((*side, median(&rounds)?, rounds))
        });
        html.push_str(&bars(figure, &sides.collect::<Vec<_>>()));
    }
    html.push_str("</div>");
}

/// Shares of all answers of all rounds by latency.
fn latencies(samples: &[Sample]) -> Vec<(f64, f64)> {
    let mut counts: Vec<(f64, f64)> = samples.iter().flat_map(|sample| sample.latencies.clone()).collect();
    counts.sort_by(|one, other| one.0.total_cmp(&other.0));
    let all: f64 = counts.iter().map(|(_, count)| count).sum();
    let mut shares: Vec<(f64, f64)> = Vec::new();
    for (millis, count) in counts {
        match shares.last_mut() {
            Some(last) if last.0 == millis => last.1 += count / all,
            _ => shares.push((millis, count / all)),
        }
    }
    shares
}

fn rates(samples: &[Sample]) -> Vec<(f64, f64)> {
    samples.last().map(|sample| sample.rates.clone()).unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_every_row() {
        let html = page(&report());
        assert!(!html.contains("http") && !html.contains("<script"), "{html}");
        assert_eq!(html.matches("<svg").count(), 3, "latency, rate and CPU of the row that was measured");
        for text in ["<h2>put-64</h2>", "not run: &lt;no&gt; port", "too noisy to judge", "nginx not found", "1.83x"] {
            assert!(html.contains(text), "{text}");
        }
    }

    #[test]
    fn shares_of_several_rounds_are_one_line() {
        let sample = |counts: &[(f64, f64)]| Sample { latencies: counts.to_vec(), ..Sample::default() };
        let shares = latencies(&[sample(&[(1.0, 1.0), (2.0, 2.0)]), sample(&[(1.0, 1.0)])]);
        assert_eq!(shares, [(1.0, 0.5), (2.0, 0.5)]);
        assert!(latencies(&[]).is_empty());
    }
}
