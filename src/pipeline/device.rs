//! Opens the device that models compute on.

use super::Progress;
use crate::model::{self, ComputeDevice, DeviceChoice};

/// Opens the device that was asked for, and notes which it is if that was left open, and its card if it has one.
pub(crate) fn open_device(
    choice: DeviceChoice,
    progress: &dyn Progress,
) -> Result<ComputeDevice, model::Error> {
    let (device, why_not_a_gpu) = ComputeDevice::open(choice)?;
    if let Some(reason) = why_not_a_gpu {
        progress.note(&format!("computing on the {device}: {reason}"));
    }
    if let Some(description) = device.description() {
        progress.note(&format!("computing on {device}: {description}"));
    }
    Ok(device)
}
