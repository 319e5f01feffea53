//! The device that a model computes on, and the dtype it computes in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::DeviceLocation;

use super::Error;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
use super::kernels::Cuda;
use super::kernels::{Activations, Cpu, Kernels};
use super::no_gpu::NoGpu;

/// The device as a user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// A GPU if one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// A GPU that is emulated on the CPU, for tests.
    #[cfg(feature = "cuda-emulator")]
    CudaEmulated(EmulatedCard),
}

/// An emulated GPU.
#[cfg(feature = "cuda-emulator")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmulatedCard {
    /// Its number, which changes nothing.
    pub number: usize,
    /// Bytes of its memory that are free once models are loaded; `None` for no limit.
    pub free_bytes: Option<u64>,
}

#[cfg(feature = "cuda-emulator")]
impl EmulatedCard {
    /// Parses a number, or bytes as `500MB`.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text.get(digits.len()..)? {
            "" => {
                return Some(Self {
                    number: digits.parse().ok()?,
                    free_bytes: None,
                });
            }
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return None,
        };
        Some(Self {
            number: 0,
            free_bytes: Some(digits.parse::<u64>().ok()?.checked_mul(unit)?),
        })
    }
}

/// How many emulated GPUs there are, where all are asked for.
#[cfg(feature = "cuda-emulator")]
const EMULATED_CARDS: usize = 3;

impl DeviceChoice {
    /// Returns all devices of this one's kind that there are here, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [`Error::NoGpu`] when GPUs are asked for, and there are none, or they can't be asked.
    pub fn all_of_its_kind(self) -> Result<Vec<Self>, Error> {
        match self {
            Self::Auto | Self::Cpu => Ok(vec![self]),
            Self::Cuda(number) => {
                let count = count().map_err(|problem| Error::NoGpu { number, problem })?;
                Ok((0..count).map(Self::Cuda).collect())
            }
            #[cfg(feature = "cuda-emulator")]
            Self::CudaEmulated(card) => {
                let numbered = |number| Self::CudaEmulated(EmulatedCard { number, ..card });
                Ok((0..EMULATED_CARDS).map(numbered).collect())
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            #[cfg(feature = "cuda-emulator")]
            "cuda-emulated" => Ok(Self::CudaEmulated(EmulatedCard::default())),
            #[cfg(feature = "cuda-emulator")]
            other if other.starts_with("cuda-emulated:") && !other.contains(',') => other
                .strip_prefix("cuda-emulated:")
                .and_then(EmulatedCard::parse)
                .map(Self::CudaEmulated)
                .ok_or_else(|| {
                    "expected cuda-emulated, cuda-emulated:N or cuda-emulated:500MB".to_owned()
                }),
            several if several == "cuda:all" || several.contains(',') => Err(
                "several GPUs are for remit-score; to train on several, give the shards to PyTorch (docs/gpu.md)"
                    .to_owned(),
            ),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            #[cfg(feature = "cuda-emulator")]
            Self::CudaEmulated(card) => match (card.number, card.free_bytes) {
                (0, None) => f.write_str("cuda-emulated"),
                (number, None) => write!(f, "cuda-emulated:{number}"),
                (_, Some(bytes)) => write!(f, "cuda-emulated:{}kB", bytes / 1000),
            },
        }
    }
}

/// A device that is open, with the kernels for it. The only place that chooses between them.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    kernels: Arc<dyn Kernels>,
}

impl ComputeDevice {
    fn cpu() -> Self {
        Self::with_kernels(Cpu::default())
    }

    /// The device of some kernels.
    pub(super) fn with_kernels(kernels: impl Kernels + 'static) -> Self {
        Self {
            kernels: Arc::new(kernels),
        }
    }

    /// Opens the device that was asked for.
    ///
    /// Returns with it the reason why it is not a GPU, if the choice was left open.
    ///
    /// # Errors
    ///
    /// [`Error::NoGpu`] when a GPU was asked for by name and can't be used.
    pub fn open(choice: DeviceChoice) -> Result<(Self, Option<NoGpu>), Error> {
        match choice {
            DeviceChoice::Cpu => Ok((Self::cpu(), None)),
            #[cfg(feature = "cuda-emulator")]
            DeviceChoice::CudaEmulated(card) => {
                let kernels = Cuda::emulated_with(card.free_bytes);
                Ok((Self::with_kernels(kernels), None))
            }
            DeviceChoice::Cuda(number) => match cuda(number) {
                Ok(device) => Ok((device, None)),
                Err(problem) => Err(Error::NoGpu { number, problem }),
            },
            DeviceChoice::Auto => match cuda(0) {
                Ok(device) => Ok((device, None)),
                Err(problem) => Ok((Self::cpu(), Some(problem))),
            },
        }
    }

    /// Returns what decides the bits of its results, without the device's number: `cpu`, or for example
    /// `cuda (NVIDIA H200, cuBLASLt 13.0.2)`.
    pub fn kind(&self) -> &str {
        self.kernels.name()
    }

    /// Returns the card and the versions of what drives it, for people; `None` for the CPU.
    pub fn description(&self) -> Option<&str> {
        self.kernels.description()
    }

    /// Returns how many bytes of its own memory are free; `None` if it has none of its own.
    ///
    /// # Errors
    ///
    /// When the device does not say.
    pub fn free_bytes(&self) -> Result<Option<u64>, Error> {
        self.kernels.free_bytes()
    }

    /// Returns whether it computes in the machine's own memory, so that what is free there is a limit.
    pub fn uses_host_memory(&self) -> bool {
        matches!(self.location(), DeviceLocation::Cpu)
    }

    fn kernels(&self) -> Arc<dyn Kernels> {
        Arc::clone(&self.kernels)
    }

    fn location(&self) -> DeviceLocation {
        self.kernels.device().location()
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.location() {
            // The CPU, or a GPU that it emulates.
            DeviceLocation::Cpu => f.write_str(self.kind()),
            DeviceLocation::Cuda { gpu_id } => write!(f, "cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => write!(f, "metal:{gpu_id}"),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_number: usize) -> Result<ComputeDevice, NoGpu> {
    Err(NoGpu::NotBuilt)
}

#[cfg(not(feature = "cuda"))]
fn count() -> Result<usize, NoGpu> {
    Err(NoGpu::NotBuilt)
}

#[cfg(feature = "cuda")]
fn count() -> Result<usize, NoGpu> {
    Cuda::count()
}

/// Opens a GPU; an error says why that is impossible.
#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<ComputeDevice, NoGpu> {
    Cuda::open(number).map(ComputeDevice::with_kernels)
}

/// The dtype that a model computes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ComputeDtype {
    /// Everything in f32.
    #[default]
    F32,
    /// Matrices in bf16, half the memory. On the CPU activations are rounded to bf16 where they meet a matrix, in
    /// training where they meet gradients; all else is f32. On a GPU activations are bf16, and norms, softmax and
    /// everything from the logits on are f32.
    Bf16,
    /// Matrices in bf16, and activations as sums of two bf16, which differ by 2^-17 at most: for a checkpoint stored in
    /// bf16, nearly the log-probs of f32. For scoring on the CPU.
    #[serde(rename = "bf16-split")]
    Bf16Split,
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16Split => "bf16-split",
        })
    }
}

/// The device that a model computes on, and the dtype it computes in.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device.
    pub device: ComputeDevice,
    /// The dtype.
    pub dtype: ComputeDtype,
    /// Whether the model will be trained: tensors that are kept in less than f32 then have an f32
    /// original beside them, which the optimizer changes.
    pub trained: bool,
}

impl Compute {
    /// Returns the kernels of the device, with the dtype's precision where they have several.
    pub(super) fn kernels(&self) -> Arc<dyn Kernels> {
        let activations = match self.dtype {
            ComputeDtype::Bf16 if !self.trained => Activations::Bf16,
            ComputeDtype::Bf16Split if !self.trained => Activations::Split,
            _ => Activations::F32,
        };
        let gradients = match self.dtype {
            ComputeDtype::Bf16 => Activations::Bf16,
            _ => Activations::F32,
        };
        let kernels = self.device.kernels();
        match kernels.name() == Cpu::NAME {
            true => Arc::new(Cpu {
                activations,
                gradients,
            }),
            false => kernels,
        }
    }
}

impl Default for Compute {
    /// f32 on the CPU.
    fn default() -> Self {
        Self {
            device: ComputeDevice::cpu(),
            dtype: ComputeDtype::F32,
            trained: false,
        }
    }
}
