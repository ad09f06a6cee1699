//! Every verdict at every place of a vendor against every way of ours: `doctor --probe`, run before the proxy starts, says
//! what a request of the Agent then shows.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::vendor::Vendor;
use harness::{check, check_eq};
use serde_json::{Value, json};

use crate::stage::{Outcome, Stage, Verdict, stage, wait_state};

/// Where a vendor's classifier stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Classic(u16),
    Tcx,
    /// On TCX, at its end, when ours is there already.
    TcxLater,
}

const PLACES: &[Place] = &[
    Place::Classic(1),
    Place::Classic(5),
    Place::Classic(10),
    Place::Classic(11),
    Place::Classic(20),
    Place::Tcx,
];

pub fn classic_at_1() -> Result<()> {
    // At 1 and on TCX, three verdicts each.
    table(&classic(1), PLACES, 6)
}

pub fn classic_at_4() -> Result<()> {
    table(&classic(4), PLACES, 6)
}

pub fn classic_at_10() -> Result<()> {
    // At 1, 5, 10 and on TCX, three verdicts each.
    table(&classic(10), PLACES, 12)
}

pub fn tcx_first() -> Result<()> {
    let mut places = PLACES.to_vec();
    places.push(Place::TcxLater);
    table(&json!({"classifier_attach": "tcx"}), &places, 0)
}

pub fn cgroup() -> Result<()> {
    table(&json!({"datapath": "cgroup"}), PLACES, 0)
}

fn classic(priority: u16) -> Value {
    json!({"classifier_attach": "netlink", "classifier_priority": priority})
}

/// Every pair of one way of ours. `missed`: how many of them take requests from us.
fn table(ours: &Value, places: &[Place], missed: usize) -> Result<()> {
    stage(|stage| {
        let mut vendors = Vec::new();
        for verdict in Verdict::ALL {
            vendors.push((
                verdict,
                stage.vendor(&format!("vendor_{verdict:?}").to_lowercase(), verdict)?,
            ));
        }
        stage.tc(&format!("qdisc add dev {} clsact", stage.device()))?;
        let mut lost = 0;
        for place in places {
            lost += at(stage, ours, *place, &vendors).with_context(|| format!("{ours}, vendor {place:?}"))?;
        }
        check_eq!(lost, missed, "pairs whose requests are taken from us");
        Ok(())
    })
}

/// A vendor at one place: the forecasts without us, then one proxy for all verdicts. How many requests were not intercepted.
fn at(stage: &Stage, ours: &Value, place: Place, vendors: &[(Verdict, Vendor)]) -> Result<usize> {
    let mut stand = Stand::new(stage, ours, place);
    let foresee = |stand: &mut Stand, verdict: Verdict, vendor: &Vendor| {
        stand.put(vendor)?;
        let (exit, report) = stage.doctor(ours, &["--probe"])?;
        let interface = stage.interface(&report)?;
        let works = report["interception"].as_bool().context("no forecast")?;
        check_eq!(exit == 0, works, "{verdict:?}: exit code {exit}\n{report:#}");
        if interface["needed"] == true {
            check_eq!(interface["reached"], json!(works), "{verdict:?}\n{report:#}");
        }
        stand.explained(verdict, works, &interface)?;
        let warned = interface["advice"].to_string().contains("drops a test packet");
        check_eq!(warned, verdict == Verdict::Shot, "{verdict:?}: {interface:#}");
        Ok(works)
    };
    let mut foreseen = Vec::new();
    if place != Place::TcxLater {
        for (verdict, vendor) in vendors {
            foreseen.push(foresee(&mut stand, *verdict, vendor)?);
        }
    }
    let proxy = stage.start(ours)?;
    let mut lost = 0;
    for (turn, (verdict, vendor)) in vendors.iter().enumerate() {
        let works = if place == Place::TcxLater {
            // Beside the running proxy: it is no vendor to itself.
            foresee(&mut stand, *verdict, vendor)?
        } else {
            stand.put(vendor)?;
            foreseen[turn]
        };
        let expected = if works {
            Outcome::Intercepted
        } else {
            lost += 1;
            verdict.outcome()
        };
        let others = stage.others()?;
        check_eq!(stage.ask()?, expected, "{verdict:?}: {}", proxy.log());
        check_eq!(
            stage.others()?,
            others,
            "{verdict:?}: the vendor's, after a request"
        );
        if matches!(place, Place::Tcx | Place::TcxLater) && ours["classifier_attach"] == "tcx" {
            let ids = stage.on_tcx()?;
            check!(
                ids.len() == 2 && ids[1] == vendor.id,
                "{verdict:?}: ours first: {ids:?}"
            );
        }
    }
    drop(proxy);
    stage.uninstall()?;
    stand.clear()?;
    Ok(lost)
}

/// A vendor's place, and what it holds there.
struct Stand<'a> {
    stage: &'a Stage<'a>,
    place: Place,
    /// The classic filter's priority is ours too.
    shared: bool,
    link: Option<OwnedFd>,
    filter: bool,
}

impl<'a> Stand<'a> {
    fn new(stage: &'a Stage<'a>, ours: &Value, place: Place) -> Self {
        let shared = matches!(place, Place::Classic(priority) if ours["classifier_priority"] == priority);
        Self {
            stage,
            place,
            shared,
            link: None,
            filter: false,
        }
    }

    /// Puts this program there: the first is added, later ones take its place. Where the vendor shares our priority it
    /// deletes its filter and adds it, as a vendor does that starts anew: whoever comes last runs first.
    fn put(&mut self, vendor: &Vendor) -> Result<()> {
        match self.place {
            Place::Classic(priority) => {
                if self.shared && self.filter {
                    self.clear()?;
                }
                let verb = if self.filter { "replace" } else { "add" };
                self.stage.filter(vendor, verb, priority)?;
                self.filter = true;
            }
            Place::Tcx | Place::TcxLater => match &self.link {
                Some(link) => vendor.take_over(link)?,
                None => self.link = Some(self.stage.tcx(vendor, false)?),
            },
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.link = None;
        if let (true, Place::Classic(priority)) = (self.filter, self.place) {
            self.stage.tc(&format!(
                "filter delete dev {} ingress prio {priority} handle 1 bpf",
                self.stage.device()
            ))?;
            self.filter = false;
        }
        Ok(())
    }

    /// A forecast that it will not work names who is in the way and the setting that helps.
    fn explained(&self, verdict: Verdict, works: bool, interface: &Value) -> Result<()> {
        let detail = interface["detail"].as_str().unwrap_or_default();
        if works {
            return Ok(());
        }
        let mut parts = vec![
            format!("vendor_{verdict:?}").to_lowercase(),
            "intercept.".to_owned(),
        ];
        match self.place {
            Place::Classic(priority) => {
                parts.push(format!("at priority {priority}, handle 0x1"));
                if priority > 1 {
                    parts.push(format!("intercept.classifier_priority: {} ", priority - 1));
                } else {
                    parts.push("intercept.classifier_attach: tcx".to_owned());
                }
            }
            Place::Tcx | Place::TcxLater => parts.push("no priority of a classic filter".to_owned()),
        }
        if self.shared {
            parts.push("whoever is added last runs first".to_owned());
        }
        for part in parts {
            check!(detail.contains(&part), "`{part}` is not in: {detail}");
        }
        Ok(())
    }
}

pub fn without_a_probe() -> Result<()> {
    stage(|stage| {
        stage.tc(&format!("qdisc add dev {} clsact", stage.device()))?;
        let vendor = stage.vendor("stranger", Verdict::Unspec)?;
        stage.filter(&vendor, "add", 5)?;
        let before = vendor.count()?;
        let (exit, report) = stage.doctor(&classic(10), &[])?;
        let interface = stage.interface(&report)?;
        check_eq!(
            (exit, &report["interception"], &interface["reached"]),
            (69, &json!(false), &Value::Null),
            "{report:#}"
        );
        check_eq!(
            interface["chain"][0]["returns"],
            json!("unknown"),
            "{interface:#}"
        );
        let detail = interface["detail"].as_str().unwrap_or_default();
        for part in [
            "`stranger",
            "at priority 5",
            "doctor --probe",
            "intercept.classifier_priority: 4",
        ] {
            check!(detail.contains(part), "`{part}` is not in: {detail}");
        }
        // Nobody was asked: looking has no effects. (Only the pod's own packets are counted, and it sends none.)
        check_eq!(vendor.count()?, before, "runs of the vendor's program");

        // The program that comes later does not matter, whatever it answers.
        let (exit, report) = stage.doctor(&classic(4), &[])?;
        check_eq!((exit, &report["interception"]), (0, &json!(true)), "{report:#}");
        // Asked, it says that it lets packets go on.
        let (exit, report) = stage.doctor(&classic(10), &["--probe"])?;
        check_eq!(
            (exit, &stage.interface(&report)?["chain"][0]["returns"]),
            (0, &json!("unspec")),
            "{report:#}"
        );
        check!(vendor.count()? > before, "the vendor's program was not asked");
        check_eq!(stage.others()?.len(), 1, "the vendor's alone");
        Ok(())
    })
}

/// What the running proxy sees counts, whatever is foreseen; and a program is not ours for its name.
pub fn doctor_believes_the_running_proxy() -> Result<()> {
    stage(|stage| {
        stage.tc(&format!("qdisc add dev {} clsact", stage.device()))?;
        let vendor = stage.vendor("classify", Verdict::Ok)?;
        stage.filter(&vendor, "add", 5)?;
        let (exit, report) = stage.doctor(&classic(10), &[])?;
        let interface = stage.interface(&report)?;
        check_eq!(
            (exit, &interface["chain"][0]["ours"]),
            (69, &json!(false)),
            "a vendor's program with the name of ours: {report:#}"
        );

        let proxy = stage.start(&classic(10))?;
        for _ in 0..5 {
            check_eq!(stage.ask()?, Outcome::Clear, "before ours: {}", proxy.log());
        }
        wait_state(&proxy, "shadowed", Duration::from_secs(10))?;
        let (_, report) = stage.doctor(&classic(10), &["--probe"])?;
        let interface = stage.interface(&report)?;
        let ours = interface["chain"].as_array().into_iter().flatten();
        let ours: Vec<&Value> = ours.map(|line| &line["ours"]).collect();
        check_eq!(ours, [&json!(false), &json!(true)], "{interface:#}");
        // A configuration that would help, if it were in force.
        let (exit, report) = stage.doctor(&classic(4), &[])?;
        check_eq!((exit, &report["interception"]), (69, &json!(false)), "{report:#}");
        let told = report["checks"].as_array().into_iter().flatten().any(|check| {
            let detail = check["detail"].as_str().unwrap_or_default();
            check["name"] == "running proxy" && check["ok"] == false && detail.contains("SHADOWED")
        });
        check!(told, "{report:#}");
        check_eq!(stage.interface(&report)?["reached"], json!(false), "{report:#}");

        // The vendor goes: the running proxy sees packets, and so says doctor.
        stage.tc(&format!(
            "filter delete dev {} ingress prio 5 handle 1 bpf",
            stage.device()
        ))?;
        wait_state(&proxy, "active", Duration::from_secs(10))?;
        let (exit, report) = stage.doctor(&classic(10), &[])?;
        check_eq!((exit, &report["interception"]), (0, &json!(true)), "{report:#}");
        drop(proxy);
        stage.uninstall().map(drop)
    })
}
