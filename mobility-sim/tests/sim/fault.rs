//! What goes wrong.

use std::sync::Arc;
use std::time::Duration;

use crate::net::{Wan, Way};
use crate::world::{Deed, Place, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    KillAgent(Place),
    /// For longer than anybody waits.
    KillAgentForLong(Place),
    KillBothAgents,
    /// With all that it kept but its key, as if it were introduced again.
    LoseState(Place),
    CutWan,
    SilenceWan,
    /// Shorter than what anybody takes for an end.
    BlinkWan,
    KillLibvirtd(Place),
    KillQemu(Place),
    /// The connection between the source's libvirt and its agent: a reply is lost.
    BreakCalls,
    /// ... between an agent and its libvirtd.
    BreakDaemon,
    /// virsh alone.
    KillClient,
    /// Whoever drives the source's migration stands still for a while, and keeps its connections.
    StopClient,
    /// ... for less time than its agent waits for it.
    SlowClient,
    /// As quick as a service manager has it back.
    RestartLibvirtd(Place),
    /// Quicker than anybody could ask it something meanwhile.
    BlinkLibvirtd(Place),
    /// By the source's operator.
    Operator(Deed),
}

impl Fault {
    pub const ALL: [Self; 19] = [
        Self::KillAgent(Place::East),
        Self::KillAgent(Place::West),
        Self::KillAgentForLong(Place::East),
        Self::KillAgentForLong(Place::West),
        Self::KillBothAgents,
        Self::LoseState(Place::East),
        Self::LoseState(Place::West),
        Self::CutWan,
        Self::SilenceWan,
        Self::BlinkWan,
        Self::KillLibvirtd(Place::East),
        Self::KillLibvirtd(Place::West),
        Self::KillQemu(Place::East),
        Self::KillQemu(Place::West),
        Self::BreakCalls,
        Self::BreakDaemon,
        Self::Operator(Deed::Resume),
        Self::Operator(Deed::Destroy),
        Self::Operator(Deed::Start),
    ];

    pub fn strike(self, world: &Arc<World>) {
        const AT_ONCE: Duration = Duration::from_millis(500);
        const SOON: Duration = Duration::from_secs(2);
        const LATE: Duration = Duration::from_secs(100);
        match self {
            Self::KillAgent(place) => world.kill_agent(place, SOON),
            Self::KillAgentForLong(place) => world.kill_agent(place, LATE),
            Self::KillBothAgents => {
                world.kill_agent(Place::West, SOON);
                world.kill_agent(Place::East, SOON * 2);
            }
            Self::LoseState(place) => {
                world.loses_state(place);
                world.kill_agent(place, SOON);
            }
            Self::CutWan => world.cut_wan(Wan::Cut, SOON * 4),
            Self::SilenceWan => world.cut_wan(Wan::Silent, LATE),
            Self::BlinkWan => world.cut_wan(Wan::Silent, SOON * 4),
            Self::KillLibvirtd(place) => world.kill_libvirtd(place, SOON * 4),
            Self::KillQemu(place) => world.kill_qemu(place),
            Self::BreakCalls => world.breaks(Way::Calls),
            Self::BreakDaemon => world.breaks(Way::Daemon),
            Self::KillClient => world.kill_client(),
            Self::StopClient => world.stop_client(LATE),
            Self::SlowClient => world.stop_client(SOON),
            Self::RestartLibvirtd(place) => world.kill_libvirtd(place, AT_ONCE),
            Self::BlinkLibvirtd(place) => world.blink_libvirtd(place),
            Self::Operator(deed) => world.operator(Place::East, deed),
        }
    }
}
