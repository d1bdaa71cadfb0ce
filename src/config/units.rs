//! Durations and sizes as the configuration writes them: `"30s"`, `"25MiB"`.

use std::time::Duration;

/// Units of time, in milliseconds.
const TIME: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of size, in octets.
const SIZE: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Units of a rate, in seconds.
const RATE: [(&str, f64); 3] = [("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A number without a unit.
    #[error("has no unit")]
    NoUnit,
    /// Not a whole number and a unit that is known.
    #[error("is not understood")]
    Syntax,
    /// More than can be counted.
    #[error("is too large")]
    TooLarge,
}

/// A whole number with one unit: `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIME).map(Duration::from_millis)
}

/// A whole number with one unit: `B`, the binary `KiB` to `TiB`, or the decimal `kB` to `TB`.
pub(super) fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZE)
}

/// So many a second, from a whole number `/s`, `/m` or `/h`.
pub(super) fn parse_rate(text: &str) -> Option<f64> {
    let (count, unit) = text.split_once('/')?;
    let (_, seconds) = RATE.into_iter().find(|(name, _)| *name == unit)?;
    let digits = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| count.parse::<u32>().ok()).flatten().map(|n| f64::from(n) / seconds)
}

/// The rate in the smallest unit in which it is a whole number: `14/s`, `1/m`.
pub fn rate(per_second: f64) -> String {
    let whole = |(name, seconds): (&str, f64)| {
        let n = (per_second * seconds).round();
        ((n / seconds - per_second).abs() < f64::EPSILON).then(|| format!("{n}/{name}"))
    };
    RATE.into_iter().find_map(whole).unwrap_or_else(|| format!("{per_second}/s"))
}

/// The duration in the largest unit that divides it: `5m`, `90s`, `0s`.
pub fn duration(d: Duration) -> String {
    let ms = u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    match TIME.iter().rev().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => "0s".into(),
    }
}

/// The size in the largest binary unit that divides it: `25MiB`, `1000B`.
pub fn size(octets: u64) -> String {
    let binary = SIZE.iter().take(5).rev();
    match binary.into_iter().find(|(_, unit)| octets > 0 && octets.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", octets / unit),
        None => "0B".into(),
    }
}

/// `n` seconds.
pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `n` minutes.
pub(super) const fn mins(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// `n` hours.
pub(super) const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, UnitError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::Syntax);
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(UnitError::Syntax)?;
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
    number.checked_mul(*factor).ok_or(UnitError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_written() {
        for (text, ms) in
            [("0s", 0), ("1ms", 1), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(parse_duration("120s").map(duration), Ok("2m".into()));
        assert_eq!(parse_duration("48h").map(duration), Ok("2d".into()));
        for (text, octets) in [("0B", 0), ("1000B", 1000), ("25MiB", 25 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(octets), "{text}");
            assert_eq!(size(octets), text);
        }
        assert_eq!(parse_size("2kB"), Ok(2000));
        assert_eq!(parse_size("1024KiB").map(size), Ok("1MiB".into()));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "s", "-1s", "+1s", "1.5s", " 1s", "1 s", "1s ", "1S", "1w", "1m30s", "١s"]
        {
            assert_eq!(parse_duration(text), Err(UnitError::Syntax), "{text:?}");
        }
        for text in ["MiB", "1mib", "1K", "1M", "1 MiB", "0x1B"] {
            assert_eq!(parse_size(text), Err(UnitError::Syntax), "{text:?}");
        }
        assert_eq!(parse_duration("30"), Err(UnitError::NoUnit));
        assert_eq!(parse_size("26214400"), Err(UnitError::NoUnit));
    }

    #[test]
    fn the_largest_quantity_is_the_last_that_reads() {
        let max = u64::MAX;
        assert_eq!(parse_size(&format!("{}B", max - 1)), Ok(max - 1));
        assert_eq!(parse_size(&format!("{max}B")), Ok(max));
        assert_eq!(parse_size("18446744073709551616B"), Err(UnitError::TooLarge));
        assert_eq!(parse_size("16777215TiB"), Ok(16_777_215 << 40));
        assert_eq!(parse_size("16777216TiB"), Err(UnitError::TooLarge));
        assert_eq!(parse_duration("18446744073709552s"), Err(UnitError::TooLarge));
    }
}
