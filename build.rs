//! Names the commit for `--version`: REMIT_COMMIT of the environment where it is set, else that of the git
//! checkout this package is the root of, else the one that a packaged copy was made from, else none.
//!
//! Compiles the CUDA kernels where a feature asks for them: to machine code and PTX, or for an emulated GPU.
//!
//! Runs again only when that commit or the kernels may have changed.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script has no use of the library that it is built before"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "REMIT_COMMIT";
/// Digits of a commit, as `git log` would show more than enough of.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let commit = match std::env::var(VARIABLE) {
        Ok(given) => given,
        Err(_) => of_checkout().or_else(of_package).unwrap_or_default(),
    };
    println!("cargo:rustc-env={VARIABLE}={commit}");
    if cfg!(any(feature = "cuda", feature = "cuda-emulator")) {
        println!("cargo:rerun-if-changed={KERNELS}/emulator");
        compile_for_gpus();
        compile_for_emulator();
    }
}

/// Where the kernels are.
const KERNELS: &str = "src/model/kernels/cuda/sources";

/// Returns the kernels' files, in the order of their names; has cargo watch them and what they include.
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
fn kernel_files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(KERNELS).expect("the package holds the kernels");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder can be listed").path())
        .filter(|path| path.is_file())
        .inspect(|path| println!("cargo:rerun-if-changed={}", path.display()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "cu"))
        .collect();
    files.sort();
    files
}

#[cfg(not(feature = "cuda"))]
fn compile_for_gpus() {}

/// Compiles the kernels for the A100 and for the H100, to machine code, and to PTX for what came after each; writes a
/// table of them, which src/model/kernels/cuda/images.rs includes.
#[cfg(feature = "cuda")]
fn compile_for_gpus() {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let home = ["CUDA_HOME", "CUDA_PATH"].map(std::env::var_os);
    let in_home = home.into_iter().flatten().next();
    let in_home = in_home.map(|home| Path::new(&home).join("bin/nvcc").into_os_string());
    let nvcc = std::env::var_os("NVCC")
        .or(in_home)
        .unwrap_or_else(|| "nvcc".into());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut table = String::from("&[\n");
    for file in kernel_files() {
        let name = file
            .file_stem()
            .expect("a file with an ending")
            .to_string_lossy()
            .into_owned();
        table += "    KernelFile {\n";
        for capability in [80, 90] {
            let target = out.join(format!("{name}_{capability}"));
            let compiled = |ending: &str, architecture: String| {
                let target = target.with_extension(ending);
                let done = Command::new(&nvcc)
                    .arg(format!("-{ending}"))
                    .args(["-std=c++17", "-O3", "--fmad=true"])
                    .arg(format!("-arch={architecture}"))
                    .arg("-o")
                    .args([&target, &file])
                    .status()
                    .unwrap_or_else(|error| panic!("{} can't be run: {error}", nvcc.display()));
                assert!(
                    done.success(),
                    "{} does not compile {}",
                    nvcc.display(),
                    file.display()
                );
                target.display().to_string()
            };
            let cubin = compiled("cubin", format!("sm_{capability}"));
            let ptx = compiled("ptx", format!("compute_{capability}"));
            table += &format!(
                "        sm_{capability}: Compiled {{ cubin: include_bytes!({cubin:?}), ptx: include_str!({ptx:?}) }},\n"
            );
        }
        table += "    },\n";
    }
    std::fs::write(out.join("kernels.rs"), table + "]\n").expect("OUT_DIR can be written to");
}

#[cfg(not(feature = "cuda-emulator"))]
fn compile_for_emulator() {}

/// Compiles the kernels and what emulates a GPU with g++. They make themselves known, so that the linker has to
/// keep what nothing names.
#[cfg(feature = "cuda-emulator")]
fn compile_for_emulator() {
    let shim = format!("{KERNELS}/emulator/shim.h");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .flag("-ffp-contract=off")
        .flag("-x")
        .flag("c++")
        .flag("-include")
        .flag(shim)
        .files(kernel_files())
        .file(format!("{KERNELS}/emulator/emulator.cpp"))
        .link_lib_modifier("+whole-archive")
        .compile("remit_emulated_kernels");
}

/// Returns the commit that is checked out here, and has cargo watch the files that tell of another.
fn of_checkout() -> Option<String> {
    // A package that was unpacked inside of another repository is not of that repository's commit.
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    if top.canonicalize().ok()? != package.canonicalize().ok()? {
        return None;
    }
    // The log of HEAD grows with every commit and checkout. Where logs are off, HEAD and what it points to tell.
    let mut watched = vec!["logs/HEAD".to_owned(), "HEAD".to_owned()];
    watched.extend(git(&["symbolic-ref", "--quiet", "HEAD"]));
    watched.push("packed-refs".to_owned());
    for name in watched {
        // Cargo takes a path that does not exist for one that changed.
        if let Some(path) = git(&["rev-parse", "--git-path", &name])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", &format!("--short={DIGITS}"), "HEAD"])
}

/// Returns the commit that `cargo package` noted.
fn of_package() -> Option<String> {
    let note = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let digits = note.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    digits.get(..DIGITS).map(str::to_owned)
}

/// Returns the one line that git prints; `None` where there is no git, no repository, or nothing to print.
fn git(args: &[&str]) -> Option<String> {
    let done = Command::new("git").args(args).output().ok()?;
    let line = String::from_utf8(done.stdout).ok()?.trim().to_owned();
    (done.status.success() && !line.is_empty()).then_some(line)
}
