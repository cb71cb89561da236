//! From the names after `--device` to devices that were found.

use super::UsageError;
use crate::demo::report::UnavailableBackend;

/// Picks devices by name: positions in `found`, each once, in the order they were asked for.
///
/// `cpu` means `cpu:0`; no name at all means every device. `found` holds identifiers such as `cpu:0`.
///
/// # Errors
/// [`UsageError::AbsentDevice`] when the backend is known but has no device here, with its reason;
/// [`UsageError::UnknownDevice`] otherwise, with the closest name that would work.
pub fn select_devices(
    requested: &[String],
    found: &[String],
    unavailable: &[UnavailableBackend],
) -> Result<Vec<usize>, UsageError> {
    if requested.is_empty() {
        return Ok((0..found.len()).collect());
    }
    let mut selected = Vec::new();
    for name in requested {
        let position = position_of(name, found, unavailable)?;
        if !selected.contains(&position) {
            selected.push(position);
        }
    }
    Ok(selected)
}

/// The one device called `name`: its position in `found`.
///
/// # Errors
/// As [`select_devices`].
pub fn position_of(
    name: &str,
    found: &[String],
    unavailable: &[UnavailableBackend],
) -> Result<usize, UsageError> {
    let name = name.to_ascii_lowercase();
    let full = if name.contains(':') { name.clone() } else { format!("{name}:0") };
    if let Some(position) = found.iter().position(|id| *id == full) {
        return Ok(position);
    }
    let backend = name.split(':').next().unwrap_or_default();
    if let Some(absent) = unavailable.iter().find(|absent| absent.backend == backend) {
        let reason = absent.reason.clone();
        return Err(UsageError::AbsentDevice { requested: name, reason, found: found.to_vec() });
    }
    let suggestion = closest(&name, found);
    Err(UsageError::UnknownDevice { requested: name, suggestion, found: found.to_vec() })
}

/// The device that was probably meant: of a backend whose name was misspelt, cut short or continued, whatever its
/// index. Other names mean other things, such as `cuda` where there is only `cpu`.
fn closest(name: &str, found: &[String]) -> Option<String> {
    let backend = name.split(':').next().unwrap_or_default();
    let distance = |id: &String| {
        let own = id.split(':').next().unwrap_or_default();
        let begins = backend.len() > 1 && (own.starts_with(backend) || backend.starts_with(own));
        // A first letter is seldom mistyped: `tpu` is no `npu`.
        let misspelt =
            backend.chars().next() == own.chars().next() && strsim::osa_distance(backend, own) <= 1;
        (begins || misspelt).then(|| (strsim::osa_distance(backend, own), id.clone()))
    };
    found.iter().filter_map(distance).min_by_key(|(distance, _)| *distance).map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<String> {
        ["cpu:0", "opencl:0", "opencl:1", "npu:0"].map(String::from).to_vec()
    }

    fn select(requested: &[&str]) -> Result<Vec<usize>, String> {
        let unavailable =
            [UnavailableBackend { backend: "cuda".into(), reason: "no libcuda.so.1 on this machine".into() }];
        let requested: Vec<String> = requested.iter().map(|&name| name.into()).collect();
        select_devices(&requested, &found(), &unavailable).map_err(|error| error.to_string())
    }

    #[test]
    fn no_name_selects_every_device() {
        assert_eq!(select(&[]), Ok(vec![0, 1, 2, 3]));
    }

    #[test]
    fn names_select_in_the_order_asked_and_only_once() {
        assert_eq!(select(&["npu", "CPU:0", "opencl:1", "npu:0"]), Ok(vec![3, 0, 2]));
    }

    #[test]
    fn an_unknown_device_gets_the_closest_name() {
        for (typo, meant) in [
            ("cup", "cpu:0"),
            ("npuu", "npu:0"),
            ("openlc", "opencl:0"),
            ("opencl:7", "opencl:0"),
            ("cpu:1", "cpu:0"),
            ("cpu0", "cpu:0"),
            ("open", "opencl:0"),
        ] {
            let message = select(&[typo]).unwrap_err();
            let expected = format!(
                "unknown device '{typo}', did you mean '{meant}'?; use one of cpu:0, opencl:0, opencl:1, npu:0"
            );
            assert_eq!(message, expected);
        }
        for other in ["zebra", "tpu", "gpu:0", "vulkan", "rocm", "c", ":0"] {
            let message = select(&[other]).unwrap_err();
            let expected = format!("unknown device '{other}'; use one of cpu:0, opencl:0, opencl:1, npu:0");
            assert_eq!(message, expected);
        }
        let found = ["cpu:0".to_owned()];
        for other in ["cuda:0", "opencl"] {
            let error = select_devices(&[other.to_owned()], &found, &[]).unwrap_err();
            assert_eq!(error.to_string(), format!("unknown device '{other}'; use one of cpu:0"));
        }
    }

    #[test]
    fn a_device_of_an_absent_backend_gets_the_reason() {
        assert_eq!(
            select(&["cuda:1"]).unwrap_err(),
            "device 'cuda:1' is absent: no libcuda.so.1 on this machine; use one of cpu:0, opencl:0, opencl:1, npu:0"
        );
    }

    #[test]
    fn without_any_device_the_error_says_so() {
        let error = select_devices(&["cpu".into()], &[], &[]).unwrap_err();
        assert_eq!(error.to_string(), "unknown device 'cpu'; no device was found on this machine");
    }
}
