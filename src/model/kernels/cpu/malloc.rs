//! How the C library's allocator treats the large buffers of a forward and a backward pass.

/// Makes the allocator keep memory that was freed, for the rest of the process: of buffers up to 64 MiB.
///
/// By default it returns every buffer of some megabytes to the operating system, which then hands it out
/// again page by page, each filled with zeros: a training step spends a tenth of its time there, and scoring in
/// bf16 as much. The buffers of one step or batch are those of the next, so keeping them costs no memory at the peak. Larger ones, logits and
/// parameters, are few, and would leave holes that make the peak a matter of chance.
pub(super) fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const SETTINGS: [(libc::c_int, libc::c_int); 3] = [
            (libc::M_MMAP_THRESHOLD, 64 << 20),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, 64 << 20),
        ];
        for (parameter, value) in SETTINGS {
            // SAFETY: mallopt only changes numbers of the allocator, under its own lock; any values are
            // allowed, and one that it can't take is left as it was.
            let taken = unsafe { libc::mallopt(parameter, value) };
            if taken == 0 {
                tracing::debug!(parameter, value, "the allocator did not take a setting");
            }
        }
    }
}
