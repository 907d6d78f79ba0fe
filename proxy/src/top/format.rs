//! Numbers in few characters. Pure.

use std::time::Duration;

/// A delay in three digits or so: "83 us", "1.2 ms", "12 ms", "3.4 s".
pub(super) fn delay(delay: Duration) -> String {
    let us = delay.as_micros();
    match us {
        0..1_000 => format!("{us} us"),
        1_000..9_950 => format!("{:.1} ms", delay.as_secs_f64() * 1e3),
        9_950..999_500 => format!("{:.0} ms", delay.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", delay.as_secs_f64()),
    }
}

/// The time that something has lasted: "12s", "3m05s", "2h07m", "4d03h".
pub(super) fn age(seconds: f64) -> String {
    let s = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// A count in at most five characters, in powers of 1000: "999", "12.3k", "4.5M".
pub(super) fn count(count: u64) -> String {
    const UNITS: [(u64, char); 5] = [
        (1_000_000_000_000_000, 'P'),
        (1_000_000_000_000, 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
        (1_000, 'k'),
    ];
    let Some((unit, letter)) = UNITS.into_iter().find(|(unit, _)| count >= *unit) else {
        return count.to_string();
    };
    // Rounded down, so that 999_999 does not become "1000.0k".
    let (whole, tenth) = (count / unit, count % unit / (unit / 10));
    if whole >= 100 { format!("{whole}{letter}") } else { format!("{whole}.{tenth}{letter}") }
}

/// The text with what could move a terminal's cursor or change its colours replaced.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_keep_two_digits() {
        for (us, text) in [
            (0, "0 us"),
            (999, "999 us"),
            (1_000, "1.0 ms"),
            (9_949, "9.9 ms"),
            (9_950, "10 ms"),
            (999_499, "999 ms"),
            (999_500, "1.0 s"),
            (12_340_000, "12.3 s"),
        ] {
            assert_eq!(delay(Duration::from_micros(us)), text);
        }
    }

    #[test]
    fn ages_have_two_units() {
        for (s, text) in [
            (-1.0, "0s"),
            (f64::NAN, "0s"),
            (59.9, "59s"),
            (60.0, "1m00s"),
            (3_599.0, "59m59s"),
            (7_620.0, "2h07m"),
            (356_400.0, "4d03h"),
        ] {
            assert_eq!(age(s), text);
        }
    }

    #[test]
    fn counts_have_at_most_five_characters() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0k"),
            (12_345, "12.3k"),
            (999_999, "999k"),
            (4_500_000, "4.5M"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(count(u64::MAX), "18446P");
    }

    #[test]
    fn escapes_become_harmless() {
        assert_eq!(harmless("/a\u{1b}[2J\u{9b}b\n"), "/a?[2J?b?");
    }
}
