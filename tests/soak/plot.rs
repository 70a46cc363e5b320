use super::sample::Sample;

const PANELS: [(&str, &str, f64); 8] = [
    ("rss_kb", "resident memory, MiB", 1024.0),
    ("anon_kb", "anonymous memory, MiB", 1024.0),
    ("descriptors", "file descriptors", 1.0),
    ("threads", "threads", 1.0),
    ("open_calls", "open calls", 1.0),
    ("watchers", "watchers", 1.0),
    ("db_kb", "database file, MiB", 1024.0),
    ("wal_kb", "write-ahead log, MiB", 1024.0),
];
const COLOURS: [&str; 3] = ["#d1495b", "#edae49", "#00798c"];
const NAMES: [&str; 3] = ["member 1 (restarted)", "member 2 (restarted)", "member 3 (never)"];
/// Of a panel, in pixels.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 170.0;

/// Draws the samples: a panel for each column, a line for each member.
pub fn draw(samples: &[Sample]) -> String {
    let minutes = samples.iter().map(|sample| sample.seconds).fold(1.0, f64::max) / 60.0;
    let rows = PANELS.len().div_ceil(2) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH * 2.0,
        HEIGHT * rows + 30.0
    );
    for (number, name) in NAMES.iter().enumerate() {
        let x = 60.0 + 160.0 * number as f64;
        svg += &format!("<text x=\"{x}\" y=\"18\" fill=\"{}\">{name}</text>\n", COLOURS[number]);
    }
    for (at, (column, title, unit)) in PANELS.iter().enumerate() {
        let (left, top) = (WIDTH * (at % 2) as f64 + 60.0, HEIGHT * (at / 2) as f64 + 50.0);
        let (width, height) = (WIDTH - 80.0, HEIGHT - 50.0);
        let most = samples.iter().map(|sample| sample.value(column) / unit).fold(1.0, f64::max) * 1.1;
        svg += &format!(
            "<text x=\"{left}\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>\n\
             <path d=\"M{left} {top}v{height}h{width}\" fill=\"none\" stroke=\"#999\"/>\n",
            top - 6.0
        );
        let digits = usize::from(most < 10.0);
        for part in [0.0, 0.5, 1.0] {
            let (value, y, x) = (most * part, top + height * (1.0 - part), left + width * part);
            svg += &format!(
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{value:.digits$}</text>\n\
                 <text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{:.0} min</text>\n",
                left - 6.0,
                y + 4.0,
                top + height + 14.0,
                minutes * part
            );
        }
        for (member, colour) in COLOURS.iter().enumerate() {
            let points = samples.iter().filter(|sample| sample.member == member).map(|sample| {
                let x = left + width * sample.seconds / 60.0 / minutes;
                let y = top + height * (1.0 - sample.value(column) / unit / most);
                format!("{x:.1},{y:.1}")
            });
            let points = points.collect::<Vec<_>>().join(" ");
            svg += &format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>\n");
        }
    }
    svg + "</svg>\n"
}
