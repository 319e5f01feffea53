//! Calls into parsers that were not written for hostile files, and panic on some of them.

mod in_memory;
pub mod limits;
pub mod parquet;

pub mod process;

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::PathBuf;
use std::sync::Once;

thread_local! {
    /// Number of guarded calls this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs a call; a panic in it becomes its message, and nothing is printed.
///
/// Never use again what the call leaves half done after a panic.
///
/// # Errors
///
/// The message of the panic.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if DEPTH.get() == 0 {
                loud(panic);
            }
        }));
    });
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|panic| text(panic.as_ref()))
}

/// Returns the path of this program, to start it again.
///
/// # Errors
///
/// When the system doesn't say.
pub fn this_program() -> io::Result<PathBuf> {
    // The link stays right when the program is replaced while it runs.
    match cfg!(target_os = "linux") {
        true => Ok(PathBuf::from("/proc/self/exe")),
        false => std::env::current_exe(),
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the parser gave up".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_others_stay_panics() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| panic!("one")), Err::<(), _>("one".to_owned()));
        let number = 2;
        let nested =
            guarded(|| guarded(|| panic!("number {number}")).map_err(|text| panic!("{text}!")));
        assert_eq!(nested, Err::<Result<(), ()>, _>("number 2!".to_owned()));
        assert_eq!(DEPTH.get(), 0);
    }

    #[test]
    #[ignore = "fails on purpose, in a process that the next test starts"]
    fn one_panic_in_a_guarded_call_and_one_outside() {
        assert_eq!(
            guarded(|| panic!("inside")),
            Err::<(), _>("inside".to_owned())
        );
        panic!("outside");
    }

    #[test]
    fn only_panics_in_guarded_calls_are_silent() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["guard::tests::one_panic_in_a_guarded_call_and_one_outside"])
            .args(["--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(
            text.contains("outside") && !text.contains("inside"),
            "{text}"
        );
    }
}
