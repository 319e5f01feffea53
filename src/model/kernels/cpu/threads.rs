//! The threads of a product.

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread; for products inside an already parallel loop.
    One,
    /// The current rayon pool. The result is the same, bit for bit: only rows and columns of the
    /// destination are divided between threads, never the sum.
    Pool,
}
