//! Tables as docker prints them: capitals above, columns three blanks apart, no lines.

use comfy_table::{ContentArrangement, Table, presets};

/// A table with `header` above `rows`; ends with a line end.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let row = |name: &str, node: &str| [name.to_owned(), node.to_owned()];
        assert_eq!(
            table(["NAME", "NODE"], [row("shop-api-1", "n1"), row("db", "")]),
            "NAME         NODE\nshop-api-1   n1\ndb\n"
        );
        assert_eq!(table(["NAME", "NODE"], []), "NAME   NODE\n");
    }
}
