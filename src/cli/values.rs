//! Parsers of single values. What they refuse is a usage error that names the flag.

use crate::corpus;
use crate::fs::NamePattern;
use crate::model::DeviceChoice;
use crate::pack::{Packer, Packing};
use crate::pipeline::Usage;
use crate::types::{DistributionPlan, TopKPlan};
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

/// The targets that the most likely tokens are stored for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TopKWhere {
    /// The fraction with the lowest entropy; `None` for all.
    pub(super) lowest_entropy: Option<f64>,
}

/// Parses the targets that the most likely tokens are stored for: `all`, or `entropy<=q20`.
pub(super) fn top_k_where(text: &str) -> Result<TopKWhere, String> {
    let text: String = text.split_whitespace().collect();
    if text == "all" {
        return Ok(TopKWhere {
            lowest_entropy: None,
        });
    }
    let percent = text
        .strip_prefix("entropy<=q")
        .ok_or("there are all and entropy<=qN, the N % with the lowest entropy, as entropy<=q20")?;
    match percent.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent < 100.0 => Ok(TopKWhere {
            lowest_entropy: Some(percent / 100.0),
        }),
        _ => Err(format!("q{percent} is no quantile between q0 and q100")),
    }
}

/// Returns what is to be stored of distributions.
///
/// # Errors
///
/// When the options contradict each other.
pub(super) fn distributions(
    entropy: bool,
    top_k: Option<u32>,
    TopKWhere { lowest_entropy }: TopKWhere,
    entropy_temperature: f64,
) -> Result<Option<DistributionPlan>, Usage> {
    if lowest_entropy.is_some() && !entropy {
        return Err(Usage(
            "--top-k-where entropy<=... ranks by the entropy, which is not stored\nhint: give --entropy too".to_owned(),
        ));
    }
    if entropy_temperature != 1.0 && !entropy && top_k.is_none() {
        return Err(Usage(
            "--entropy-temperature changes nothing without --entropy or --top-k\nhint: --temperature is that of the \
             weights"
                .to_owned(),
        ));
    }
    Ok((entropy || top_k.is_some()).then(|| DistributionPlan {
        temperature: entropy_temperature,
        entropy,
        top_k: top_k.map(|k| TopKPlan { k, lowest_entropy }),
    }))
}

/// Parses a number of most likely tokens.
pub(super) fn top_k(text: &str) -> Result<u32, String> {
    match positive(text)? {
        k @ ..=MAX_TOP_K => u32::try_from(k).map_err(|error| error.to_string()),
        k => Err(format!("{k} is more than {MAX_TOP_K}")),
    }
}

/// Most tokens of a distribution that are stored: a row group of them is held in memory, 4 GB at this number.
const MAX_TOP_K: usize = 1024;

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
