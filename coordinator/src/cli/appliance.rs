//! `causeway appliance build`.

use super::args::{ApplianceArgs, ApplianceVerb};
use super::exit;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::show::line;

pub fn appliance(context: &Context, args: ApplianceArgs) -> Result<u8, Failure> {
    let ApplianceVerb::Build { kernel, agent, output } = args.verb;
    let output = output.unwrap_or_else(|| context.appliance_dir());
    let request = appliance::BuildRequest {
        kernel: match kernel {
            Some(dir) => appliance::KernelChoice::Tree(dir),
            None => appliance::KernelChoice::Any,
        },
        agent: agent.unwrap_or_else(|| context.agent_binary()),
        out: output.clone(),
        extra_modules: Vec::new(),
        extra_files: Vec::new(),
    };
    let built = appliance::build(&request).map_err(|error| {
        let failure = Failure::new(Kind::Refused, "the helper cannot be built").caused_by(&error);
        error.hint().into_iter().fold(failure, Failure::hint)
    })?;
    let manifest = &built.manifest;
    if context.json {
        line(&serde_json::json!({ "appliance": output, "manifest": manifest }).to_string());
        return Ok(exit::DONE);
    }
    line(&format!("built in {}", output.display()));
    line(&format!("  kernel    {} from {}", manifest.kernel_version, manifest.kernel_origin));
    line(&format!("  modules   {}", manifest.modules.join(" ")));
    if !manifest.absent.is_empty() {
        line(&format!("  lacks     {}", manifest.absent.join(" ")));
    }
    Ok(exit::DONE)
}
