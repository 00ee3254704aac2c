//! Whether a switchover can fit its budget at all.

use crate::forecast::Forecast;
use crate::refusal::Refusal;
use crate::request::Options;

/// No round makes the fixed part smaller: better said now than when everything has been copied.
pub(crate) fn budget(options: &Options, forecast: &Forecast) -> Option<Refusal> {
    let (fixed_s, allowed_ms) = (forecast.fixed_ms().div_ceil(1000), options.max_downtime_ms);
    (forecast.fixed_ms() > allowed_ms).then(|| {
        Refusal::new(
            "downtime-budget",
            format!(
                "stopping and booting alone take about {fixed_s} s ({} s of them to boot), and {} s of downtime are allowed",
                forecast.boot_ms.div_ceil(1000),
                allowed_ms / 1000
            ),
            format!("allow more: --max-downtime {fixed_s}s; or say how long it boots if you know better: --boot-time"),
        )
    })
}
