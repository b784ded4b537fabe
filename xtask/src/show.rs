//! What a task says while it works: steps with their time, and small tables.

use crate::error::Result;
use std::time::{Duration, Instant};

/// A time for a person: `812 ms`, `2.41 s`, `3 min 12 s`.
pub(crate) fn time(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.2} s", time.as_secs_f64()),
        _ => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// Does one step: says what, then how long it took and what came of it.
pub(crate) fn step(title: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    println!("\n▸ {title}");
    let begun = Instant::now();
    let result = work();
    let took = time(begun.elapsed());
    match &result {
        Ok(text) => {
            text.lines().for_each(|line| println!("  {line}"));
            println!("  done in {took}");
        }
        Err(_) => println!("  failed after {took}"),
    }
    result.map(drop)
}

/// Rows in columns as wide as they need; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_precise_as_they_matter() {
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1240, "1.24 s"), (99_990, "99.99 s"), (192_000, "3 min 12 s")]
        {
            assert_eq!(time(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text = table(&[row(&["NODE", "API"]), row(&["n1", "1"]), row(&["longer", "–"])]);
        assert_eq!(text, "NODE    API\nn1      1\nlonger  –");
        assert_eq!(table(&[]), "");
    }
}
