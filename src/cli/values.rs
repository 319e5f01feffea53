//! Parsers of single values. What they refuse is a usage error that names the flag.

use crate::corpus;
use crate::fs::NamePattern;
use crate::model::DeviceChoice;
use crate::pack::{Packer, Packing};
use crate::weight::{DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// The devices that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Devices {
    /// One.
    One(DeviceChoice),
    /// Several GPUs.
    Several(Vec<DeviceChoice>),
    /// All GPUs that there are of a kind, of which this is one.
    All(DeviceChoice),
}

/// Parses one device where several may be given.
fn one(text: &str) -> Result<DeviceChoice, String> {
    text.parse().map_err(|reason: String| {
        reason.replace("cuda or cuda:N", "cuda, cuda:N, cuda:N,N or cuda:all")
    })
}

/// Parses devices: one, or several GPUs.
pub(super) fn devices(text: &str) -> Result<Devices, String> {
    if let Some(kind @ ("cuda" | "cuda-emulated")) = text.strip_suffix(":all") {
        return one(kind).map(Devices::All);
    }
    let Some((kind, numbers)) = text
        .split_once(':')
        .filter(|(_, numbers)| numbers.contains(','))
    else {
        return one(text).map(Devices::One);
    };
    let mut all: Vec<DeviceChoice> = Vec::new();
    for number in numbers.split(',') {
        let device = format!("{kind}:{number}").parse()?;
        if all.contains(&device) {
            return Err(format!("{device} is given twice"));
        }
        all.push(device);
    }
    Ok(Devices::Several(all))
}

/// Parses a whole number greater than 0.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("it is not a whole number".to_owned()),
    }
}

/// Parses a number of bytes greater than 0: `1048576`, `1024K`, `1M`, `1MiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is no unit; there are K, M and G")),
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => Err("it must be at least 1".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("it is not a number of bytes".to_owned()),
    }
}

/// Parses the ending of a file that can be read.
pub(super) fn input_format(text: &str) -> Result<String, String> {
    let ending = text.strip_prefix('.').unwrap_or(text);
    if !ending.contains('/') && corpus::is_supported(&format!("stdin.{ending}")) {
        return Ok(ending.to_owned());
    }
    Err("no file with this ending is read; jsonl, txt, parquet and arrow are, each alone or with .gz or .zst".to_owned())
}

/// Parses a pattern of file names.
pub(super) fn name_pattern(text: &str) -> Result<NamePattern, String> {
    NamePattern::new(text).map_err(|reason| format!("it is not a pattern of file names: {reason}"))
}

/// Parses a finite number that is not negative.
pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        Ok(value) => Err(format!("{value} is not a finite number of at least 0")),
        Err(_) => Err("it is not a number".to_owned()),
    }
}

/// Parses a finite number greater than 0.
pub(super) fn above_zero(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        0.0 => Err("it must be greater than 0".to_owned()),
        value => Ok(value),
    }
}

/// Parses a fraction in (0, 1].
pub(super) fn fraction(text: &str) -> Result<f64, String> {
    match above_zero(text)? {
        value if value <= 1.0 => Ok(value),
        value => Err(format!("{value} is more than 1, which is all")),
    }
}

/// Parses a fraction in (0, 1).
pub(super) fn open_fraction(text: &str) -> Result<f64, String> {
    match fraction(text)? {
        1.0 => Err("it must leave something, so be less than 1".to_owned()),
        value => Ok(value),
    }
}

/// Parses a decay rate in [0, 1).
pub(super) fn decay_rate(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        value if value < 1.0 => Ok(value),
        value => Err(format!("{value} is not less than 1")),
    }
}

/// Parses a half-width of the interval of weights.
pub(super) fn epsilon(text: &str) -> Result<f32, String> {
    let formula = WeightFormula::new(single(text)?, DEFAULT_TEMPERATURE);
    formula
        .map(|formula| formula.epsilon())
        .map_err(|error| error.to_string())
}

/// Parses a temperature of the weights.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    let formula = WeightFormula::new(DEFAULT_EPSILON, single(text)?);
    formula
        .map(|formula| formula.temperature())
        .map_err(|error| error.to_string())
}

/// Parses the ending of a file's name: `py`, `.py`, `*.py`.
pub(super) fn extension(text: &str) -> Result<String, String> {
    let ext = text
        .trim_start_matches('*')
        .trim_start_matches('.')
        .to_ascii_lowercase();
    match ext.as_str() {
        "" => Err("it is empty".to_owned()),
        "gz" | "zst" => {
            Err("packed files are read by what is before it: py reads .py.gz too".to_owned())
        }
        _ if ext.contains(['/', '*', '?']) => Err("it is not an ending, such as py".to_owned()),
        _ => Ok(ext),
    }
}

/// Parses a length of rows, in tokens.
pub(super) fn row_length(text: &str) -> Result<u32, String> {
    let length = text
        .parse()
        .map_err(|_| "it is not a whole number".to_owned())?;
    Packer::new(Packing::default(), length)
        .map(|_| length)
        .map_err(|error| error.to_string())
}

fn single(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "it is not a number".to_owned())
}
