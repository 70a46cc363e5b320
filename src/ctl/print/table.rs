/// Draws a box: heads centred, cells to the right.
pub(crate) fn draw(heads: &[&str], rows: &[Vec<String>]) -> Vec<u8> {
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(column, head)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([head.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(middle))
    };
    let mut text = rule("┌", "┬", "┐");
    let heads: Vec<String> = heads.iter().zip(&widths).map(|(head, &width)| format!(" {head:^width$} ")).collect();
    text += &format!("│{}│\n", heads.join("│"));
    if !rows.is_empty() {
        text += &rule("├", "┼", "┤");
    }
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:>width$} ")).collect();
        text += &format!("│{}│\n", cells.join("│"));
    }
    text += &rule("└", "┴", "┘");
    text.into_bytes()
}
