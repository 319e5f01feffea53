//! Reasons why a GPU can't be used, in a line each, with the way out.

use std::fmt;

/// The oldest GPUs that the kernels run on: they have bf16 on tensor cores and copies in the background.
#[cfg(any(test, feature = "cuda"))]
pub(super) const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Free memory below which a card has no room for anything: its context and cuBLASLt's workspace take more.
#[cfg(any(test, feature = "cuda"))]
const LEAST_FREE_BYTES: u64 = 64 << 20;

/// Why a GPU can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoGpu {
    /// The program was built without CUDA.
    NotBuilt,
    /// There is no driver.
    NoDriver,
    /// The driver is older than what the kernels were compiled with; versions of CUDA.
    OldDriver {
        /// What the driver is for; `None` where it does not say.
        found: Option<(i32, i32)>,
        /// The least that the program needs.
        needed: (i32, i32),
    },
    /// The driver sees no GPU of this number.
    NoSuchCard {
        /// The number.
        number: usize,
        /// GPUs that it sees.
        count: usize,
    },
    /// The GPU is older than the kernels allow.
    OldCard {
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// Next to nothing of the GPU's memory is free.
    NoMemory {
        /// Its name.
        name: String,
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes that it has; 0 if that is not known.
        total_bytes: u64,
    },
    /// A library of CUDA's is missing.
    NoLibrary {
        /// Its name, without lib and .so.
        name: String,
    },
    /// Anything else, in CUDA's own words.
    Other {
        /// The words.
        reported: String,
    },
}

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("this program was built without CUDA"),
            Self::NoDriver => {
                f.write_str("no NVIDIA driver is installed: there is no libcuda.so.1")
            }
            Self::OldDriver { found, needed } => {
                match found {
                    Some((major, minor)) => write!(f, "its driver is for CUDA {major}.{minor}")?,
                    None => f.write_str("its driver does not take the kernels")?,
                }
                let (major, minor) = needed;
                write!(
                    f,
                    ", and this program needs one for CUDA {major}.{minor} or later"
                )
            }
            Self::NoSuchCard { count: 0, .. } => f.write_str("the driver sees no GPU"),
            Self::NoSuchCard { count: 1, .. } => f.write_str("the driver sees one GPU, cuda:0"),
            Self::NoSuchCard { count, .. } => {
                write!(
                    f,
                    "the driver sees {count} GPUs, cuda:0 to cuda:{}",
                    count - 1
                )
            }
            Self::OldCard {
                name,
                capability: (major, minor),
            } => write!(
                f,
                "{name} has compute capability {major}.{minor}; 8.0, that of the A100, is the least"
            ),
            Self::NoMemory {
                name,
                total_bytes: 0,
                ..
            } => write!(f, "{name} has no memory free"),
            Self::NoMemory {
                name,
                free_bytes,
                total_bytes,
            } => write!(
                f,
                "{name} has {} MB of its {} MB free",
                free_bytes / 1_000_000,
                total_bytes / 1_000_000
            ),
            Self::NoLibrary { name } => write!(f, "CUDA's lib{name}.so is not installed"),
            Self::Other { reported } => write!(f, "CUDA reports: {reported}"),
        }
    }
}

impl NoGpu {
    /// Returns what to do about it, besides computing on the CPU.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::NotBuilt => "scripts/build-cuda.sh builds it with CUDA",
            Self::NoDriver => "install NVIDIA's driver, or start the container with its GPUs",
            Self::OldDriver { .. } => {
                "update NVIDIA's driver, or build with the CUDA that it is for: CUDA_HOME=... scripts/build-cuda.sh"
            }
            Self::NoSuchCard { .. } => {
                "nvidia-smi -L lists GPUs; CUDA_VISIBLE_DEVICES may hide some"
            }
            Self::OldCard { .. } => "name another GPU with --device cuda:N",
            Self::NoMemory { .. } => "nvidia-smi lists the processes that use it",
            Self::NoLibrary { .. } => {
                "LD_LIBRARY_PATH has to name the folder that holds it; the PyPI packages nvidia-cublas and nvidia-curand \
                 have such folders"
            }
            Self::Other { .. } => "nvidia-smi tells whether the driver works",
        }
    }
}

/// What probing a GPU found, as far as it came.
#[cfg(any(test, feature = "cuda"))]
#[derive(Debug, Clone, Default)]
pub(super) struct Probe {
    /// The number that was asked for.
    pub number: usize,
    /// The least version of CUDA that the driver has to be for.
    pub needed: (i32, i32),
    /// The panic of the loader of CUDA's libraries.
    pub panic: Option<String>,
    /// The driver's version of CUDA as it says it: 13000 is 13.0.
    pub driver_version: Option<i32>,
    /// GPUs that the driver sees.
    pub count: Option<usize>,
    /// The GPU's name.
    pub name: String,
    /// Its compute capability.
    pub capability: Option<(i32, i32)>,
    /// Bytes of its memory that are free, and all of them.
    pub memory: Option<(u64, u64)>,
    /// The first error that CUDA reported.
    pub error: Option<String>,
}

#[cfg(any(test, feature = "cuda"))]
impl Probe {
    /// Returns why the GPU can't be used; `None` if nothing speaks against it.
    pub fn problem(&self) -> Option<NoGpu> {
        if let Some(panic) = &self.panic {
            return Some(missing_library(panic));
        }
        let found = self
            .driver_version
            .map(|version| (version / 1000, version % 1000 / 10));
        let old_driver = NoGpu::OldDriver {
            found: found.filter(|found| *found != (0, 0)),
            needed: self.needed,
        };
        // cuDriverGetVersion says 0 where the driver's library is there, but no driver.
        if found == Some((0, 0)) {
            return Some(NoGpu::NoDriver);
        }
        if found.is_some_and(|found| found < self.needed) {
            return Some(old_driver);
        }
        let is_reported = |code: &str| self.error.as_ref().is_some_and(|text| text.contains(code));
        if is_reported("CUDA_ERROR_UNSUPPORTED_PTX_VERSION") {
            return Some(old_driver);
        }
        let count = match is_reported("CUDA_ERROR_NO_DEVICE") {
            true => Some(0),
            false => self.count,
        };
        if let Some(count) = count.filter(|count| *count <= self.number) {
            let number = self.number;
            return Some(NoGpu::NoSuchCard { number, count });
        }
        if let Some(capability) = self.capability.filter(|found| *found < LEAST_CAPABILITY) {
            let name = self.name.clone();
            return Some(NoGpu::OldCard { name, capability });
        }
        let is_full = is_reported("OUT_OF_MEMORY") || is_reported("ALLOC_FAILED");
        let (free_bytes, total_bytes) = self.memory.unwrap_or_default();
        if is_full || self.memory.is_some() && free_bytes < LEAST_FREE_BYTES {
            return Some(NoGpu::NoMemory {
                name: match self.name.is_empty() {
                    true => "the GPU".to_owned(),
                    false => self.name.clone(),
                },
                free_bytes,
                total_bytes,
            });
        }
        let error = self.error.as_ref()?;
        Some(NoGpu::Other {
            reported: first_line(error),
        })
    }
}

/// Returns what a panic of the loader of CUDA's libraries means: `Unable to dynamically load the "cuda" shared
/// library - searched for` some 30 names.
#[cfg(any(test, feature = "cuda"))]
fn missing_library(panic: &str) -> NoGpu {
    let library = panic
        .split_once("dynamically load the \"")
        .and_then(|(_, rest)| rest.split_once('"'));
    match library {
        Some(("cuda", _)) => NoGpu::NoDriver,
        Some((name, _)) => NoGpu::NoLibrary {
            name: name.to_owned(),
        },
        None => NoGpu::Other {
            reported: first_line(panic),
        },
    }
}

/// The first line: with RUST_BACKTRACE set, a backtrace follows.
#[cfg(any(test, feature = "cuda"))]
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Returns the least version of CUDA whose drivers take PTX of the version that a text of PTX names, by the table of
/// the PTX manual; that of CUDA 12.0 if it names none.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn cuda_of_ptx(ptx: &str) -> (i32, i32) {
    let version = ptx.lines().find_map(|line| line.strip_prefix(".version "));
    let numbers = version.and_then(|version| {
        let (major, minor) = version.trim().split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    match numbers {
        Some((8, minor @ 0..=5)) => (12, minor),
        // CUDA 12.6 has the version of 12.5.
        Some((8, minor)) => (12, minor + 1),
        Some((major @ 9.., minor)) => (major + 4, minor),
        _ => (12, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A card that can be used.
    fn fine() -> Probe {
        Probe {
            number: 1,
            needed: (13, 0),
            driver_version: Some(13_000),
            count: Some(2),
            name: "NVIDIA H200".to_owned(),
            capability: Some((9, 0)),
            memory: Some((140_000_000_000, 150_000_000_000)),
            panic: None,
            error: None,
        }
    }

    fn panic(library: &str) -> Option<String> {
        Some(format!(
            "Unable to dynamically load the \"{library}\" shared library - searched for library names: [\"lib{library}.so\", \
             \"lib{library}64.so\"]. Ensure that `LD_LIBRARY_PATH` has the correct path to the installed library."
        ))
    }

    fn reported(code: &str) -> Probe {
        Probe {
            error: Some(format!("DriverError({code}, \"text\")\n   0: backtrace")),
            ..fine()
        }
    }

    #[test]
    fn every_finding_has_one_line_that_says_what_and_one_that_says_what_to_do() {
        let no_symbols = "Expected symbol in library";
        let cases = [
            (
                Probe {
                    driver_version: None,
                    panic: panic("cuda"),
                    ..Probe::default()
                },
                "no NVIDIA driver is installed: there is no libcuda.so.1",
                "install NVIDIA's driver",
            ),
            (
                Probe {
                    driver_version: Some(0),
                    ..fine()
                },
                "no NVIDIA driver is installed",
                "install NVIDIA's driver",
            ),
            (
                Probe {
                    driver_version: Some(12_040),
                    ..fine()
                },
                "its driver is for CUDA 12.4, and this program needs one for CUDA 13.0 or later",
                "update NVIDIA's driver, or build with the CUDA",
            ),
            (
                Probe {
                    driver_version: None,
                    ..reported("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
                },
                "its driver does not take the kernels, and this program needs one for CUDA 13.0 or later",
                "update NVIDIA's driver",
            ),
            (
                reported("CUDA_ERROR_NO_DEVICE"),
                "the driver sees no GPU",
                "CUDA_VISIBLE_DEVICES",
            ),
            (
                Probe {
                    count: Some(1),
                    ..fine()
                },
                "the driver sees one GPU, cuda:0",
                "nvidia-smi -L",
            ),
            (
                Probe {
                    number: 8,
                    count: Some(8),
                    ..fine()
                },
                "the driver sees 8 GPUs, cuda:0 to cuda:7",
                "nvidia-smi -L",
            ),
            (
                Probe {
                    name: "Tesla T4".to_owned(),
                    capability: Some((7, 5)),
                    ..fine()
                },
                "Tesla T4 has compute capability 7.5; 8.0, that of the A100, is the least",
                "another GPU",
            ),
            (
                Probe {
                    memory: Some((12_000_000, 150_000_000_000)),
                    ..fine()
                },
                "NVIDIA H200 has 12 MB of its 150000 MB free",
                "nvidia-smi lists the processes",
            ),
            (
                Probe {
                    memory: None,
                    name: String::new(),
                    ..reported("CUDA_ERROR_OUT_OF_MEMORY")
                },
                "the GPU has no memory free",
                "nvidia-smi lists the processes",
            ),
            (
                Probe {
                    panic: panic("cublasLt"),
                    ..fine()
                },
                "CUDA's libcublasLt.so is not installed",
                "LD_LIBRARY_PATH",
            ),
            (
                Probe {
                    panic: panic("curand"),
                    ..fine()
                },
                "CUDA's libcurand.so is not installed",
                "LD_LIBRARY_PATH",
            ),
            (
                Probe {
                    panic: Some(format!("{no_symbols}\nbacktrace")),
                    ..fine()
                },
                "CUDA reports: Expected symbol in library",
                "nvidia-smi tells",
            ),
            (
                reported("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
                "CUDA reports: DriverError(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, \"text\")",
                "nvidia-smi tells",
            ),
        ];
        for (probe, reason, way_out) in cases {
            let problem = probe.problem().unwrap();
            let text = problem.to_string();
            assert!(text.starts_with(reason), "{text}");
            assert!(problem.way_out().contains(way_out), "{text}");
            for line in [&text, problem.way_out()] {
                assert_eq!(line.lines().count(), 1, "{line}");
            }
        }
        assert_eq!(fine().problem(), None);
        assert_eq!(
            NoGpu::NotBuilt.to_string(),
            "this program was built without CUDA"
        );
    }

    #[test]
    fn the_driver_that_is_needed_is_that_of_the_kernels() {
        let ptx = |version: &str| format!("// Generated\n\n.version {version}\n.target sm_80\n");
        for (version, cuda) in [
            ("8.0", (12, 0)),
            ("8.5", (12, 5)),
            ("8.6", (12, 7)),
            ("8.8", (12, 9)),
            ("9.0", (13, 0)),
            ("9.1", (13, 1)),
        ] {
            assert_eq!(cuda_of_ptx(&ptx(version)), cuda, "{version}");
        }
    }
}
