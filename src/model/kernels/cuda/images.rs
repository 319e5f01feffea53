//! The kernels as they are in the program, and the form in which a GPU gets them.
//!
//! Machine code is there for two generations; what came after them gets PTX, which its driver compiles first: about a
//! minute, once, for then it keeps the result. Machine code for one capability runs on those of the same generation
//! that came later.

/// A file of kernels, compiled for the GPUs of a capability.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compiled {
    /// Machine code.
    pub cubin: &'static [u8],
    /// Assembly, for later generations too.
    pub ptx: &'static str,
}

/// A file of kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelFile {
    /// For the A100, and what came until the H100.
    pub sm_80: Compiled,
    /// For the H100 and H200.
    pub sm_90: Compiled,
}

/// What a driver loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    MachineCode(&'static [u8]),
    Ptx(&'static str),
}

impl KernelFile {
    /// Returns what a GPU of a compute capability, `(major, minor)`, can load, the best first.
    fn images(&self, capability: (i32, i32)) -> Vec<Image> {
        let of = |compiled: &Compiled| {
            vec![Image::MachineCode(compiled.cubin), Image::Ptx(compiled.ptx)]
        };
        match capability.0 {
            ..=8 => of(&self.sm_80),
            9 => of(&self.sm_90),
            10.. => vec![Image::Ptx(self.sm_90.ptx)],
        }
    }

    /// Loads the best image that the driver takes; of several errors, the last is returned.
    pub fn load<M, E>(
        &self,
        capability: (i32, i32),
        load: impl Fn(Image) -> Result<M, E>,
    ) -> Result<M, E> {
        let mut images = self.images(capability).into_iter();
        let mut loaded = load(images.next().unwrap_or(Image::Ptx(self.sm_80.ptx)));
        for image in images {
            if loaded.is_ok() {
                break;
            }
            loaded = load(image);
        }
        loaded
    }
}

/// Written by build.rs.
#[cfg(feature = "cuda")]
pub(super) static KERNEL_FILES: &[KernelFile] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const FILE: KernelFile = KernelFile {
        sm_80: Compiled {
            cubin: b"80",
            ptx: "80",
        },
        sm_90: Compiled {
            cubin: b"90",
            ptx: "90",
        },
    };

    /// Loads with a driver that refuses some; returns what it was given, and what it loaded.
    fn loaded(
        capability: (i32, i32),
        refused: &[Image],
    ) -> (Vec<Image>, Result<Image, &'static str>) {
        let given = RefCell::new(Vec::new());
        let result = FILE.load(capability, |image| {
            given.borrow_mut().push(image);
            match refused.contains(&image) {
                true => Err("refused"),
                false => Ok(image),
            }
        });
        (given.into_inner(), result)
    }

    #[test]
    fn machine_code_of_its_generation_is_preferred_and_later_gpus_get_ptx() {
        let [a100, h100] = [b"80", b"90"].map(|code| Image::MachineCode(code));
        for (capability, best) in [
            ((8, 0), a100),
            ((8, 6), a100),
            ((8, 9), a100),
            ((9, 0), h100),
            ((10, 0), Image::Ptx("90")),
            ((12, 1), Image::Ptx("90")),
        ] {
            assert_eq!(loaded(capability, &[]), (vec![best], Ok(best)));
        }
    }

    #[test]
    fn where_machine_code_is_refused_ptx_is_loaded_and_its_error_is_the_one_told() {
        let (code, ptx) = (Image::MachineCode(b"90"), Image::Ptx("90"));
        assert_eq!(loaded((9, 0), &[code]), (vec![code, ptx], Ok(ptx)));
        let both = loaded((9, 0), &[code, ptx]);
        assert_eq!(both, (vec![code, ptx], Err("refused")));
    }

    /// Returns the machine of an ELF file, and the capability in its flags, times ten.
    #[cfg(feature = "cuda")]
    fn target(cubin: &[u8]) -> (u16, u32) {
        let flags = u32::from_le_bytes(cubin[48..52].try_into().unwrap());
        // The second version of the flags has it a byte further.
        let shift = if cubin[8] >= 8 { 8 } else { 0 };
        let machine = u16::from_le_bytes(cubin[18..20].try_into().unwrap());
        (machine, flags >> shift & 0xff)
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn every_file_has_machine_code_and_ptx_with_the_same_kernels_for_both_generations() {
        const EM_CUDA: u16 = 190;
        assert!(!KERNEL_FILES.is_empty());
        for file in KERNEL_FILES {
            for (compiled, capability) in [(file.sm_80, 80), (file.sm_90, 90)] {
                assert!(compiled.cubin.starts_with(b"\x7fELF"));
                assert_eq!(target(compiled.cubin), (EM_CUDA, capability));
                assert!(
                    compiled
                        .ptx
                        .contains(&format!("\n.target sm_{capability}\n"))
                );
                let names = compiled.ptx.split(".visible .entry ").skip(1);
                let names: Vec<&str> = names.filter_map(|rest| rest.split('(').next()).collect();
                assert!(!names.is_empty());
                for name in names {
                    let section = format!(".text.{name}\0");
                    let found = memchr::memmem::find(compiled.cubin, section.as_bytes());
                    assert!(
                        found.is_some(),
                        "{name} is not in the code for sm_{capability}"
                    );
                }
            }
        }
    }
}
