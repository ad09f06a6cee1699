//! Where the API server is, from the environment.

use super::*;

fn config(api: PodsApi, folder: &Path) -> Config {
    let mut config = Config::default();
    config.intercept.agents.pods.api = api;
    config.intercept.agents.pods.service_account = folder.to_owned();
    config.intercept.agents.pods.node = Some("node-1".to_owned());
    config
}

fn environment<'a>(host: &'a str, port: &'a str) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| match name {
        HOST => Some(host.to_owned()),
        PORT => Some(port.to_owned()),
        _ => None,
    }
}

#[test]
fn auto_asks_only_where_kubernetes_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let auto = config(PodsApi::Auto, folder.path());
    let inside = environment("10.0.0.1", "443");
    assert_eq!(Reach::find_in(&auto, &inside).unwrap(), None, "no token");
    std::fs::write(folder.path().join(TOKEN), "x").unwrap();
    assert_eq!(Reach::find_in(&auto, |_| None).unwrap(), None, "no host");
    assert_eq!(
        Reach::find_in(&auto, environment("", "")).unwrap(),
        None,
        "an empty one"
    );
    let reach = Reach::find_in(&auto, &inside).unwrap().unwrap();
    assert_eq!(reach.authority(), "10.0.0.1:443");
    assert_eq!(reach.field_selector(), "spec.nodeName=node-1");
    let off = config(PodsApi::Off, folder.path());
    assert_eq!(Reach::find_in(&off, &inside).unwrap(), None);
}

#[test]
fn on_needs_a_server_and_says_which_key() {
    let folder = tempfile::tempdir().unwrap();
    let on = config(PodsApi::On, folder.path());
    let error = Reach::find_in(&on, |_| None).unwrap_err().to_string();
    assert!(
        error.contains(HOST) && error.contains("intercept.agents.pods.api"),
        "{error}"
    );
    let error = Reach::find_in(&on, environment("10.0.0.1", "https")).unwrap_err();
    assert!(error.to_string().contains(PORT));
    // The token is looked at with each request.
    assert!(
        Reach::find_in(&on, environment("10.0.0.1", "6443"))
            .unwrap()
            .is_some()
    );
}

#[test]
fn ipv6_hosts_have_brackets_in_uris_alone() {
    let folder = tempfile::tempdir().unwrap();
    let on = config(PodsApi::On, folder.path());
    for host in ["fd00::1", "[fd00::1]"] {
        let reach = Reach::find_in(&on, environment(host, "")).unwrap().unwrap();
        assert_eq!(
            (reach.host.as_str(), reach.authority().as_str()),
            ("fd00::1", "[fd00::1]:443")
        );
    }
}

#[test]
fn the_node_is_the_host_name_unless_it_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut on = config(PodsApi::On, folder.path());
    on.intercept.agents.pods.node = None;
    let reach = Reach::find_in(&on, environment("10.0.0.1", "")).unwrap().unwrap();
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(reach.node, name.trim().to_lowercase());
}
