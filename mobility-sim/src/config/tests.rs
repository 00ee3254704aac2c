use super::*;

fn example() -> String {
    include_str!("../config.rs")
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| format!("{}\n", line.trim_start_matches("//!").trim_start()))
        .collect()
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mobility.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path)
}

#[test]
fn the_example_above_is_a_configuration() {
    let config = load(&example()).unwrap();
    assert_eq!(config.site.name.as_str(), "east");
    let networks = config.arrivals.networks();
    assert_eq!(networks["br0"], NetworkRef::Network("default".to_owned()));
    assert_eq!(networks["br1"], NetworkRef::Bridge("br-lan".to_owned()));
}

/// The example with something else in it.
fn with(right: &str, wrong: &str) -> String {
    let example = example();
    assert!(example.contains(right), "{right}");
    example.replacen(right, wrong, 1)
}

fn mistakes(text: &str) -> Vec<String> {
    match load(text) {
        Err(ConfigError::Mistakes { mistakes, .. }) => mistakes,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_wrong_line_is_shown_with_its_number() {
    for (right, wrong, said) in [
        ("[arrivals]", "[arrivals]\nhots = 1", "hots"),
        ("49152-49215", "49152", "49152"),
        ("unix:/run", "/run", "unix:PATH"),
        ("[arrivals]", "[arrivals", "unclosed"),
    ] {
        let error = load(&with(right, wrong)).unwrap_err().to_string();
        assert!(error.contains("mobility.toml") && error.contains("line"), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_value_is_refused_with_what_it_ought_to_be() {
    let address = "an IP address and a port, such as 203.0.113.7:7443; host names are not";
    for (right, wrong, said) in [
        ("\"203.0.113.7:7443\"", "\"agent-b:7443\"", address),
        ("\"203.0.113.7:7443\"", "\"203.0.113.7\"", address),
        ("\"203.0.113.7:7443\"", "7443", address),
        ("wan = \"10.77.1.1:7443\"", "wan = \":7443\"", address),
        ("[\"10.77.1.1:16510\"]", "[\"16510\"]", address),
        ("[\"10.77.1.1:16510\"]", "\"10.77.1.1:16510\"", "a list: [\"10.77.1.1:16510\"]"),
        ("[\"10.77.1.1:16514\"]", "\"10.77.1.1:16514\"", "a list: [\"10.77.1.1:16510\"]"),
        ("[\"/srv/templates/debian-12.raw\"]", "\"/srv/a\"", "a list: [\"/srv/"),
        ("data-address = \"10.77.1.1\"", "data-address = \"host-a\"", "an IP address, such as"),
        ("listen = \"10.77.1.1\"", "listen = \"host-a\"", "an IP address, such as 10.77.1.1"),
        ("4096", "\"4G\"", "a whole number of MiB"),
        ("4096", "-1", "a whole number of MiB"),
        ("4096", "4294967296", "a whole number of MiB"),
        ("302a3005", "302a3006", "as `causeway-mobility introduce` prints it"),
        ("6a0f1c52-", "", "what `uuidgen` prints"),
    ] {
        let mistakes = mistakes(&with(right, wrong));
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].contains(said) && mistakes[0].contains("line"), "{}", mistakes[0]);
    }
}

#[test]
fn one_wrong_section_hides_no_other() {
    let text = with("[arrivals]", "[arrival]").replace("203.0.113.7:7443", "agent-b:7443");
    let mistakes = mistakes(&text.replace("4096", "\"4G\""));
    let begins: Vec<_> = mistakes.iter().map(|one| one.lines().next().unwrap()).collect();
    let missing = "section [arrivals] is missing: give it `pool`, a storage pool of this site";
    let unknown = "[arrival] is no section of a configuration: is it misspelt?";
    assert_eq!(begins[1], missing);
    assert_eq!(begins[3], unknown);
    assert!(mistakes[0].contains("agent-b") && mistakes[2].contains("4G"), "{mistakes:?}");
    let listed = listed(&mistakes);
    assert!(listed.lines().all(|line| line.starts_with("  - ") || line.starts_with("    ")));
}

#[test]
fn only_what_is_needed_has_to_be_there() {
    let text = with("[relay]\nmemory-mib = 4096", "");
    assert_eq!(load(&text).unwrap().relay.memory_mib, memory_mib());
}

#[test]
fn what_cannot_work_is_a_mistake() {
    for (right, wrong, key) in [
        ("\"/var/lib/causeway-mobility\"", "\"mobility\"", "site.state-dir"),
        ("\"qemu:///system\"", "\"qemu\"", "site.uri"),
        ("\"qemu:///system\"", "\"://system\"", "site.uri"),
        ("\"qemu:///system\"", "\"qemu://\"", "site.uri"),
        ("[listen]", "[listen]\nunix = \"agent.sock\"", "listen.unix"),
        ("[listen]", "[listen]\nunix = \"/run/libvirt/libvirt-sock\"", "listen.unix"),
        ("10.77.1.1:16510", "10.77.1.1:0", "listen.libvirt"),
        ("10.77.1.1:16514", "10.77.1.1:0", "listen.tls.at"),
        ("wan = \"10.77.1.1:7443\"", "wan = \"10.77.1.1:0\"", "listen.wan"),
        ("wan = \"10.77.1.1:7443\"", "wan = \"10.77.1.1:16514\"", "listen.wan"),
        ("wan = \"10.77.1.1:7443\"", "wan = \"0.0.0.0:16510\"", "listen.wan"),
        ("10.77.1.1:16514", "10.77.1.1:16510", "listen.tls.at"),
        ("neighbour-of-east", "neighbour of east", "host.hostname"),
        ("br0 = \"default\"", "br0 = \"\"", "arrivals.networks"),
        ("bridge:br-lan", "bridge:", "arrivals.networks"),
        ("4096", "0", "relay.memory-mib"),
    ] {
        let mistakes = mistakes(&with(right, wrong));
        assert_eq!(mistakes.len(), 1, "{wrong}: {mistakes:?}");
        assert!(mistakes[0].starts_with(&format!("{key}: ")), "{}", mistakes[0]);
    }
    for uri in
        ["qemu+ssh://root@host-b/system?keyfile=/k", "test:///default", "qemu+tcp://[fd::1]/"]
    {
        load(&with("qemu:///system", uri)).unwrap();
    }
    let wan = |at: &str| load(&with("wan = \"10.77.1.1:7443\"", &format!("wan = \"{at}\"")));
    wan("[fd::1]:16510").unwrap();
    // On all of IPv6 is on all of IPv4 as well.
    wan("[::]:16510").unwrap_err();
}

#[test]
fn libvirts_own_socket_is_known_by_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, name) = (dir.path().join("socket"), dir.path().join("name"));
    std::fs::write(&socket, "").unwrap();
    std::os::unix::fs::symlink(&socket, &name).unwrap();
    let text = with("unix:/run/libvirt/libvirt-sock", &format!("unix:{}", socket.display()));
    let unix = format!("[listen]\nunix = \"{}\"", name.display());
    assert_eq!(mistakes(&text.replace("[listen]", &unix)).len(), 1);
}

#[test]
fn an_agent_is_not_its_own_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let own = crate::key::identity(dir.path()).unwrap().public();
    let text = with("/var/lib/causeway-mobility", &dir.path().display().to_string());
    load(&text).unwrap();
    let theirs = load(&text).unwrap().neighbour.key;
    let mistakes = mistakes(&text.replace(&theirs.to_string(), &own.to_string()));
    assert!(mistakes[0].starts_with("neighbour.key: "), "{mistakes:?}");
}

#[test]
fn a_check_names_every_file_that_is_wrong_beside_what_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mobility.toml");
    let text = with("/srv/templates/debian-12.raw\"", "/gone/1.raw\", \"/gone/2.raw\", \"3.raw\"");
    let text = text.replace("memory-mib = 4096", "memory-mib = 0").replace("/etc/pki", "/gone/pki");
    std::fs::write(&path, text).unwrap();
    let Err(ConfigError::Mistakes { mistakes, .. }) = Config::check(&path) else { panic!("taken") };
    let begins = [
        "arrivals.templates: ",
        "relay.memory-mib: ",
        "cannot read listen.tls.ca /gone/pki/CA/cacert.pem: No such file",
        "cannot read listen.tls.cert /gone/pki/causeway/cert.pem: No such file",
        "cannot read listen.tls.key /gone/pki/causeway/key.pem: No such file",
        "the template /gone/1.raw cannot be read",
        "the template /gone/2.raw cannot be read",
    ];
    assert_eq!(mistakes.len(), begins.len(), "{mistakes:?}");
    for (one, begin) in mistakes.iter().zip(begins) {
        assert!(one.starts_with(begin), "{one}");
    }
}

#[test]
fn an_address_of_another_machine_is_a_warning() {
    let at = |address: &str| {
        let text = with("data-address = \"10.77.1.1\"", &format!("data-address = \"{address}\""));
        load(&text).unwrap().warnings()
    };
    assert_eq!(at("127.0.0.1"), [""; 0]);
    assert!(at("203.0.113.9")[0].contains("203.0.113.9 is no address of this machine"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = example()
        .replace("neighbour-of-east", "localhost")
        .replace("\"west\"", "\"east\"")
        .replace("data-address = \"10.77.1.1\"", "data-address = \"0.0.0.0\"")
        .replace("/usr/share/OVMF/", "")
        .replace("/var/lib/libvirt/", "")
        .replace("/srv/templates/", "");
    assert_eq!(mistakes(&text).len(), 6);
}
