//! Plain aligned columns: the first to the left, the others to the right.

/// Aligns rows of cells. Every row has as many cells as the first.
pub(crate) fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn columns_are_aligned() {
        let rows = [["what", "measured"], ["resident memory", "1 MiB"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(render(&rows), "what             measured\nresident memory     1 MiB\n");
        assert_eq!(render(&[]), "");
    }
}
