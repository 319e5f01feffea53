//! A row of a set for the eye.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::IsTerminal;

use crate::pipeline::inspect::ShownRow;

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Color {
    /// Coloured on a terminal, unless NO_COLOR is set; else a table
    #[default]
    Auto,
    /// Coloured text
    Always,
    /// A table
    Never,
}

/// Foreground and background, of 256 colours, from the lowest weight to the highest.
const SHADES: [&str; 7] = [
    "\x1b[30;48;5;33m",
    "\x1b[30;48;5;117m",
    "\x1b[30;48;5;195m",
    "",
    "\x1b[30;48;5;224m",
    "\x1b[30;48;5;217m",
    "\x1b[30;48;5;203m",
];
const RESET: &str = "\x1b[0m";

/// Log-probs, in nats, below which a token has the last shade where there are no weights.
const SURPRISE_NATS: f32 = 8.0;

pub(super) fn row(row: &ShownRow, color: Color) -> String {
    let no_color = std::env::var_os("NO_COLOR");
    let is_coloured = is_coloured(color, std::io::stdout().is_terminal(), no_color.as_deref());
    let scored = &row.stored.scored;
    let mut text = format!(
        "row {}: {} tokens, from record {} of {}\n",
        row.stored.row_id,
        scored.num_tokens(),
        scored.doc_index,
        printable(&scored.source)
    );
    match &row.pieces {
        Some(pieces) if is_coloured => coloured(&mut text, row, pieces),
        _ => table(&mut text, row),
    }
    text
}

/// NO_COLOR counts if it is not empty, whatever it says (no-color.org).
fn is_coloured(color: Color, is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && no_color.is_none_or(OsStr::is_empty),
    }
}

/// What a token is coloured by, from -1 to 1: its weight, or else how unlikely the RL model finds it.
fn shade_of(row: &ShownRow, position: usize) -> f32 {
    let scored = &row.stored.scored;
    let Some(target) = position.checked_sub(1) else {
        return 0.0;
    };
    match (&scored.weights, row.epsilon) {
        (Some(weights), Some(epsilon)) if epsilon > 0.0 => weights
            .get(target)
            .map_or(0.0, |weight| (weight - 1.0) / epsilon),
        _ => scored
            .rl_logprobs
            .get(target)
            .map_or(0.0, |log_prob| (-log_prob / SURPRISE_NATS).clamp(0.0, 1.0)),
    }
}

fn coloured(text: &mut String, row: &ShownRow, pieces: &[(usize, String)]) {
    let what = if row.stored.scored.weights.is_some() {
        "weight: lowest"
    } else {
        "surprise of the RL model: none"
    };
    let _ = write!(text, "{what} ");
    for shade in SHADES {
        let _ = write!(text, "{shade}  {RESET}");
    }
    let _ = writeln!(text, " highest\n");
    let mut position = 0;
    for (len, piece) in pieces {
        let last = position + len - 1;
        let level = (shade_of(row, last) + 1.0) / 2.0 * (SHADES.len() - 1) as f32;
        // In range: a shade lies within -1 and 1, rounding errors aside.
        let shade = SHADES
            .get(level.round().max(0.0) as usize)
            .unwrap_or(&SHADES[0]);
        // A background that reaches over the end of a line would fill the next one.
        for (i, line) in piece.split('\n').enumerate() {
            if i > 0 {
                text.push('\n');
            }
            if !line.is_empty() {
                let _ = write!(text, "{shade}{}{RESET}", printable(line));
            }
        }
        position += len;
    }
    text.push('\n');
}

/// Text without what would move the cursor or change colours.
fn printable(line: &str) -> String {
    let show = |c: char| {
        if c.is_control() && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    line.chars().map(show).collect()
}

fn table(text: &mut String, row: &ShownRow) {
    let scored = &row.stored.scored;
    let _ = writeln!(text, "position       id   weight      rl    base  text");
    let number = |values: Option<&Vec<f32>>, position: usize, digits: usize| {
        let value = position
            .checked_sub(1)
            .and_then(|target| values?.get(target));
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let mut texts = Vec::new();
    for (len, piece) in row.pieces.iter().flatten() {
        texts.extend((1..*len).map(|_| String::new()));
        texts.push(format!("{piece:?}"));
    }
    for (position, id) in scored.input_ids.iter().enumerate() {
        let line = format!(
            "{position:>8} {id:>8} {:>8} {:>7} {:>7}  {}",
            number(scored.weights.as_ref(), position, 4),
            number(Some(&scored.rl_logprobs), position, 3),
            number(scored.base_logprobs.as_ref(), position, 3),
            texts.get(position).map_or("", String::as_str)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::row::StoredRow;
    use crate::types::ScoredRow;

    fn shown(source: &str, weights: &[f32]) -> ShownRow {
        let len = weights.len();
        ShownRow {
            stored: StoredRow {
                row_id: 7,
                scored: ScoredRow {
                    source: source.into(),
                    doc_index: 3,
                    doc_starts: vec![0],
                    input_ids: (0..=len as u32).collect(),
                    rl_logprobs: vec![-1.0; len],
                    base_logprobs: Some(vec![-1.5; len]),
                    weights: Some(weights.to_vec()),
                },
            },
            pieces: Some((0..=len).map(|i| (1, format!("t{i}"))).collect()),
            epsilon: Some(0.2),
        }
    }

    #[test]
    fn colour_is_for_terminals_without_no_color() {
        let set = Some(OsStr::new("1"));
        let empty = Some(OsStr::new(""));
        for (color, is_terminal, no_color, expected) in [
            (Color::Auto, true, None, true),
            (Color::Auto, true, empty, true),
            (Color::Auto, true, set, false),
            (Color::Auto, false, None, false),
            (Color::Always, false, set, true),
            (Color::Never, true, None, false),
        ] {
            let found = is_coloured(color, is_terminal, no_color);
            assert_eq!(found, expected, "{color:?}, {is_terminal}, {no_color:?}");
        }
    }

    #[test]
    fn the_bounds_have_the_outer_shades_and_1_has_none() {
        let text = row(&shown("a.txt", &[0.8, 1.0, 1.2]), Color::Always);
        let tokens = text.lines().last().unwrap();
        let [low, .., high] = SHADES;
        assert_eq!(
            tokens,
            format!("t0{RESET}{low}t1{RESET}t2{RESET}{high}t3{RESET}")
        );
    }

    #[test]
    fn a_row_can_not_move_the_cursor() {
        let mut shown = shown("a\x1b[2J.txt", &[1.0, 1.1]);
        shown.pieces = Some(vec![
            (1, "a".to_owned()),
            (2, "\x1b[31m\r\n\x07b".to_owned()),
        ]);
        for color in [Color::Always, Color::Never] {
            let mut text = row(&shown, color);
            for shade in SHADES
                .into_iter()
                .chain([RESET])
                .filter(|shade| !shade.is_empty())
            {
                text = text.replace(shade, "");
            }
            let moves = text.chars().any(|c| c.is_control() && c != '\n');
            assert!(!moves, "{text:?}");
        }
    }
}
