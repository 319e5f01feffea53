//! Questions to the device that models compute on.

use super::Progress;
use crate::model::{self, ComputeDevice, DeviceChoice, SCORING_ACTIVATION_BYTES};

/// Opens the device that was asked for, and notes which it is if that was left open.
pub(crate) fn open_device(
    choice: DeviceChoice,
    progress: &dyn Progress,
) -> Result<ComputeDevice, model::Error> {
    let (device, why_not_a_gpu) = ComputeDevice::open(choice)?;
    if let Some(reason) = why_not_a_gpu {
        progress.note(&format!("computing on the {device}: {reason}"));
    }
    Ok(device)
}

/// Returns the most bytes that the activations of a batch to score may take on a device. Larger batches are split.
pub(super) fn scoring_budget_bytes(_device: &ComputeDevice) -> usize {
    SCORING_ACTIVATION_BYTES
}

/// Returns whether a device computes in the machine's own memory, so that what is free there is a limit.
pub(super) fn uses_host_memory(device: &ComputeDevice) -> bool {
    device.kind() == "cpu"
}
