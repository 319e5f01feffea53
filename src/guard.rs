//! Calls into parsers that were not written for hostile files, and panic on some of them.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// How many guarded calls this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs a call; a panic in it becomes its message, and nothing is printed.
///
/// What the call leaves half done after a panic must not be used again.
///
/// # Errors
///
/// What the panic said.
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
}
