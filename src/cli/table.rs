//! Columns for eyes.

/// The head and the rows as lines, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let head = head.map(String::from);
    let all = || std::iter::once(&head).chain(rows);
    let mut widths = [0; N];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_trails() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let rows = [row(["gråsäl", "1", "x"]), row(["b", "", ""])];
        assert_eq!(table(["NAME", "N", "WHY"], &rows), ["NAME    N  WHY", "gråsäl  1  x", "b"]);
        assert_eq!(table(["A"], &[]), ["A"]);
    }
}
