//! `qemu+tls`: only hosts with a certificate of the site's authority are taken in.

use std::path::{Path, PathBuf};

use e2e::{Agents, Scene, SceneOptions};
use lab::Scenario;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const AT: &str = "10.77.1.1";

/// An authority, by the name of it.
fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

/// A certificate and its key.
fn issued(by: &Issuer<'_, KeyPair>, name: &str, for_what: ExtendedKeyUsagePurpose) -> [String; 2] {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![for_what];
    let key = KeyPair::generate().unwrap();
    [params.signed_by(&key, by).unwrap().pem(), key.serialize_pem()]
}

/// A folder as libvirt's `pkipath` names it: what a host shows, and whom it takes for the agent.
fn of_host(dir: &Path, ca: &str, by: &Issuer<'_, KeyPair>) -> PathBuf {
    std::fs::create_dir(dir).unwrap();
    let [cert, key] = issued(by, "host-of-east", ExtendedKeyUsagePurpose::ClientAuth);
    for (file, pem) in [("cacert.pem", ca), ("clientcert.pem", &cert), ("clientkey.pem", &key)] {
        std::fs::write(dir.join(file), pem).unwrap();
    }
    dir.to_owned()
}

#[test]
fn over_tls_only_hosts_of_the_sites_authority_may_migrate() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let mut agents = Agents::start(&scene).unwrap();
    let ((ca, issuer), (other, stranger)) = (authority("east"), authority("somebody"));
    let [cert, key] = issued(&issuer, AT, ExtendedKeyUsagePurpose::ServerAuth);
    let file = |name: &str, pem: &str| {
        let path = scene.dir().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (cert, key, of) = (file("cert.pem", &cert), file("key.pem", &key), file("ca.pem", &ca));
    let at = format!("{AT}:16514");
    agents
        .restart_east_listening(&format!(
            "tls = {{ at = [\"{at}\"], cert = \"{cert}\", key = \"{key}\", ca = \"{of}\" }}"
        ))
        .unwrap();

    let whole = ["--p2p", "--copy-storage-all"];
    let shows = |dir: PathBuf| format!("qemu+tls://{at}/system?pkipath={}", dir.display());
    // A host that takes its own authority for right, and the agent's.
    let both = format!("{ca}{other}");
    let by_stranger = shows(of_host(&scene.dir().join("stranger"), &both, &stranger));
    let refused = agents.refused(&[&[&*by_stranger], &whole[..]].concat()).unwrap();
    println!("a certificate of another authority: {refused}");
    let is_told = || Ok(agents.east.log().contains("a host was turned away"));
    agents.until("it is told", is_told).unwrap();
    assert_eq!(agents.state(scene.east()).unwrap(), "running");
    scene.west_is_clean().unwrap();

    agents.stretch_network().unwrap();
    let known = shows(of_host(&scene.dir().join("known"), &ca, &issuer));
    let took = agents.migrate(&[&[&*known], &whole[..]].concat()).unwrap();
    println!("over TLS: {took:?}");
    agents.route_to_west().unwrap();
    agents.has_moved_whole().unwrap();
}
