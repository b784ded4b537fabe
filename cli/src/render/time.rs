//! Moments and spans as people say them.

use super::count;
use jiff::Timestamp;

/// Milliseconds since 1970 now.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// `2 minutes`; rounded down to one unit.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => "less than a second".to_owned(),
        1..60 => count(s, "second"),
        60..3600 => count(s / 60, "minute"),
        3600..86_400 => count(s / 3600, "hour"),
        86_400..1_209_600 => count(s / 86_400, "day"),
        1_209_600..5_184_000 => count(s / 604_800, "week"),
        5_184_000..63_072_000 => count(s / 2_592_000, "month"),
        _ => count(s / 31_536_000, "year"),
    }
}

/// `2 minutes ago`. A moment ahead of us (clocks differ) was just now.
pub(crate) fn ago(now_ms: u64, then_ms: u64) -> String {
    format!("{} ago", span(now_ms.saturating_sub(then_ms)))
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn stamp(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms}ms"), |at| format!("{at:.3}"))
}

/// A moment as `--since` takes it: a duration before now (`10m`) or RFC 3339.
pub(crate) fn moment(text: &str, now_ms: u64) -> Result<u64, String> {
    if let Ok(back) = text.parse::<gantry_api::units::Millis>() {
        return Ok(now_ms.saturating_sub(back.0));
    }
    text.parse::<Timestamp>()
        .ok()
        .and_then(|at| u64::try_from(at.as_millisecond()).ok())
        .ok_or_else(|| "write a duration such as `10m` or a time such as `2026-11-24T08:00:00Z`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_one_unit() {
        const S: u64 = 1000;
        for (ms, want) in [
            (0, "less than a second"),
            (999, "less than a second"),
            (S, "1 second"),
            (59 * S, "59 seconds"),
            (60 * S, "1 minute"),
            (3599 * S, "59 minutes"),
            (3600 * S, "1 hour"),
            (86_400 * S, "1 day"),
            (13 * 86_400 * S, "13 days"),
            (14 * 86_400 * S, "2 weeks"),
            (70 * 86_400 * S, "2 months"),
            (800 * 86_400 * S, "2 years"),
        ] {
            assert_eq!(span(ms), want, "{ms}");
        }
        assert_eq!(ago(5000, 2000), "3 seconds ago");
        assert_eq!(ago(5000, 9000), "less than a second ago", "clocks of two hosts differ");
    }

    #[test]
    fn a_moment_is_a_duration_back_or_a_time() {
        assert_eq!(moment("10s", 60_000), Ok(50_000));
        assert_eq!(moment("10h", 60_000), Ok(0));
        assert_eq!(moment("1970-01-01T00:00:01.5Z", 60_000), Ok(1500));
        assert_eq!(moment("1970-01-01T01:00:00+01:00", 60_000), Ok(0));
        assert!(moment("yesterday", 0).is_err());
    }

    #[test]
    fn stamps_are_utc() {
        assert_eq!(stamp(1500), "1970-01-01T00:00:01.500Z");
        assert_eq!(stamp(u64::MAX), format!("{}ms", u64::MAX));
    }
}
