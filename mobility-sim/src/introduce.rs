//! What the other agent's configuration is told of this one.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use model::SiteName;
use serde::Deserialize;
use thiserror::Error;

use crate::config::sections::Sections;
use crate::config::{self, ConfigError, STATE_DIR_RELATIVE, values};
use crate::key::{self, KeyError};

#[derive(Debug, Error)]
pub enum IntroduceError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// As much of a configuration as that takes: the other agent may not be known yet.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Site {
    name: SiteName,
    state_dir: PathBuf,
}

#[derive(Deserialize)]
struct Listen {
    #[serde(deserialize_with = "values::address")]
    wan: SocketAddr,
}

/// The `[neighbour]` section for the other one. The key is made if there is none.
pub fn section(config: &Path) -> Result<String, IntroduceError> {
    let (site, wan) = read(config)?;
    let key = key::identity(&site.state_dir)?.public();
    let name = &site.name;
    let mut section = String::from("[neighbour]\n");
    let _ = writeln!(section, "name = \"{name}\"");
    if wan.ip().is_unspecified() {
        let port = wan.port();
        let _ = writeln!(section, "address = \"ADDRESS:{port}\"  # where this agent is reached");
    } else {
        let _ = writeln!(section, "address = \"{wan}\"  # or what leads to it");
    }
    let _ = writeln!(section, "key = \"{key}\"");
    Ok(section)
}

fn read(path: &Path) -> Result<(Site, SocketAddr), ConfigError> {
    let text = config::text(path)?;
    let mut sections = Sections::of(&text, path)?;
    let site: Option<Site> = sections.take("site", "give it `name` and `state-dir`");
    let listen: Option<Listen> = sections.take("listen", "give it `wan`");
    let mut mistakes = sections.mistakes();
    match (site, listen) {
        // A key in another folder would be another agent's.
        (Some(site), Some(_)) if site.state_dir.is_relative() => {
            mistakes.push(STATE_DIR_RELATIVE.to_owned());
            Err(ConfigError::Mistakes { path: path.to_owned(), mistakes })
        }
        (Some(site), Some(listen)) => Ok((site, listen.wan)),
        _ => Err(ConfigError::Mistakes { path: path.to_owned(), mistakes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dir: &Path, wan: &str) -> Result<String, IntroduceError> {
        let config = dir.join("east.toml");
        let state = dir.join("state").display().to_string();
        let text = format!(
            "[site]\nname = \"east\"\nstate-dir = \"{state}\"\n[listen]\nwan = \"{wan}\"\n"
        );
        std::fs::write(&config, text).unwrap();
        section(&config)
    }

    #[test]
    fn an_agent_introduces_itself_before_it_knows_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let told = of(dir.path(), "10.77.1.1:7443").unwrap();
        let table: toml::Table = toml::from_str(&told).unwrap();
        let neighbour = &table["neighbour"];
        assert_eq!(neighbour["name"].as_str(), Some("east"));
        assert_eq!(neighbour["address"].as_str(), Some("10.77.1.1:7443"));
        let key = key::identity(&dir.path().join("state")).unwrap().public().to_string();
        assert_eq!(neighbour["key"].as_str(), Some(&*key));
        // Where everything is listened to, nobody knows the address but its operator.
        assert!(of(dir.path(), "0.0.0.0:7443").unwrap().contains("\"ADDRESS:7443\""));
        let error = of(dir.path(), "7443").unwrap_err();
        assert!(units::chain(&error).contains("wan"), "{}", units::chain(&error));
    }

    #[test]
    fn what_is_missing_or_would_be_another_agents_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("east.toml");
        let refused = |text: &str| {
            std::fs::write(&config, text).unwrap();
            section(&config).unwrap_err().to_string()
        };
        let both = refused("[arrivals]");
        assert!(both.contains("[site] is missing") && both.contains("[listen] is"), "{both}");
        let listen = "[listen]\nwan = \"10.77.1.1:7443\"\n";
        let elsewhere = refused(&format!("[site]\nname = \"east\"\nstate-dir = \"s\"\n{listen}"));
        assert!(elsewhere.contains("site.state-dir: give the whole path"), "{elsewhere}");
    }
}
