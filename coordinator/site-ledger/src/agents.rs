//! What a site's mobility agent says of itself, for whoever begins a live migration there: with whom it is paired.

use model::SiteName;
use serde::{Deserialize, Serialize};
use site::{RecordKey, Site, SiteError};
use thiserror::Error;

/// The only layout so far.
const VERSION: u32 = 1;

/// Kept at its own site, as `mobility/NEIGHBOUR`, since it last started. It may have ended since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPaper {
    version: u32,
    pub site: SiteName,
    /// Its public key, as the other agent's configuration is to have it.
    pub key: String,
    pub neighbour: SiteName,
    /// Whom it takes for that.
    pub neighbour_key: String,
}

/// Why two agents do not carry a VM from one site to the other.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unpaired {
    #[error("no mobility agent of {at} has said there that {neighbour} is its neighbour")]
    NoAgent { at: SiteName, neighbour: SiteName },
    #[error("the mobility agent of {at} expects another key of {neighbour} than its agent has")]
    OtherKey { at: SiteName, neighbour: SiteName },
}

impl AgentPaper {
    pub fn new(
        (site, key): (SiteName, String),
        (neighbour, neighbour_key): (SiteName, String),
    ) -> Self {
        Self { version: VERSION, site, key, neighbour, neighbour_key }
    }

    /// # Errors
    /// Where the site does not take it.
    pub async fn keep(&self, at: &dyn Site) -> Result<(), SiteError> {
        let key = key(&self.neighbour);
        let body = serde_json::to_vec(self).expect("texts and numbers can be written");
        let before = at.kept(&key).await?;
        at.keep(&key, before.as_deref(), &body).await
    }
}

/// Whether VMs can go from the one to the other, as both agents were when they last started.
///
/// # Errors
/// Where a site does not answer.
pub async fn paired(
    (from, source): (&SiteName, &dyn Site),
    (to, destination): (&SiteName, &dyn Site),
) -> Result<Result<(), Unpaired>, SiteError> {
    let here = kept(from, source, to).await?;
    let there = kept(to, destination, from).await?;
    Ok(match (here, there) {
        (None, _) => Err(Unpaired::NoAgent { at: from.clone(), neighbour: to.clone() }),
        (_, None) => Err(Unpaired::NoAgent { at: to.clone(), neighbour: from.clone() }),
        (Some(here), Some(there)) if here.neighbour_key != there.key => {
            Err(Unpaired::OtherKey { at: from.clone(), neighbour: to.clone() })
        }
        (Some(here), Some(there)) if there.neighbour_key != here.key => {
            Err(Unpaired::OtherKey { at: to.clone(), neighbour: from.clone() })
        }
        (Some(_), Some(_)) => Ok(()),
    })
}

/// What cannot be read says nothing.
async fn kept(
    name: &SiteName,
    at: &dyn Site,
    neighbour: &SiteName,
) -> Result<Option<AgentPaper>, SiteError> {
    let body = at.kept(&key(neighbour)).await?;
    let paper = body.and_then(|body| serde_json::from_slice::<AgentPaper>(&body).ok());
    Ok(paper.filter(|paper| paper.version == VERSION && paper.site == *name))
}

fn key(neighbour: &SiteName) -> RecordKey {
    format!("mobility/{neighbour}").parse().expect("a site's name is part of a key")
}

#[cfg(test)]
mod tests {
    use site_memory::World;

    use super::*;

    async fn said(
        (site, key): (&str, &str),
        (neighbour, neighbour_key): (&str, &str),
        world: &World,
    ) {
        let name = |name: &str| name.parse::<SiteName>().unwrap();
        let paper = AgentPaper::new(
            (name(site), key.to_owned()),
            (name(neighbour), neighbour_key.to_owned()),
        );
        paper.keep(&world.site(&name(site))).await.unwrap();
    }

    #[tokio::test]
    async fn two_agents_are_paired_that_know_each_others_keys() {
        let world = World::new();
        let (east, west): (SiteName, SiteName) = ("east".parse().unwrap(), "west".parse().unwrap());
        let (source, destination) = (world.site(&east), world.site(&west));
        let asked = async || paired((&east, &source), (&west, &destination)).await.unwrap();
        let no_agent = |at: &SiteName, neighbour: &SiteName| {
            Err(Unpaired::NoAgent { at: at.clone(), neighbour: neighbour.clone() })
        };
        let other_key = |at: &SiteName, neighbour: &SiteName| {
            Err(Unpaired::OtherKey { at: at.clone(), neighbour: neighbour.clone() })
        };

        assert_eq!(asked().await, no_agent(&east, &west));
        said(("east", "aa"), ("west", "bb"), &world).await;
        assert_eq!(asked().await, no_agent(&west, &east));
        // Another one, at the same site, for VMs of another.
        said(("west", "bb"), ("north", "aa"), &world).await;
        assert_eq!(asked().await, no_agent(&west, &east));
        said(("west", "cc"), ("east", "aa"), &world).await;
        assert_eq!(asked().await, other_key(&east, &west));
        // Started again, with the key that is expected.
        said(("west", "bb"), ("east", "dd"), &world).await;
        assert_eq!(asked().await, other_key(&west, &east));
        said(("west", "bb"), ("east", "aa"), &world).await;
        assert_eq!(asked().await, Ok(()));
    }
}
