//! The status page: one HTML page, made here, with no outside resource and no script.

use std::fmt::{Display, Write};

use crate::config::TlsPolicy;
use crate::observe::distrust::{ago, cure};
use crate::observe::logging::Lost;
use crate::observe::view::{Facts, Health, ProductState, ProductStatus, View};
use crate::supervise::protocol::{ClientTlsStatus, WorkerStatus};

/// Between the tags, byte for byte: the policy of content names its digest.
pub(super) const STYLE: &str = "
:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:1.8rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:#b00020;font-weight:600}@media(prefers-color-scheme:dark){.bad{color:#ff8a80}}dl{display:grid;grid-template-columns:max-content auto;gap:.2rem 1rem}
dt{font-weight:600}dd{margin:0}.wide{overflow-x:auto}";

/// The page as it is now.
pub fn render(facts: &Facts) -> String {
    let mut page = String::with_capacity(16 * 1024);
    // Writing into a String cannot fail.
    let _ = write(&mut page, &facts.view());
    page
}

fn write(page: &mut String, view: &View) -> std::fmt::Result {
    let (master, worker) = (&view.master, &view.worker);
    let module = &worker.module;
    write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>agent-fips-proxy</title><style>{STYLE}</style></head><body><h1>agent-fips-proxy {}</h1><dl>",
        env!("CARGO_PKG_VERSION")
    )?;
    let not_ready = master.not_ready();
    if not_ready.is_empty() {
        row(page, "State", "ready")?;
    } else {
        write!(
            page,
            "<dt>State</dt><dd class=\"bad\">not ready: {}</dd>",
            Html(not_ready.join("; "))
        )?;
    }
    row(page, "Site", &view.site)?;
    row(page, "Module", &module.version)?;
    row(
        page,
        "Certificate",
        module.certificate.as_deref().unwrap_or("none"),
    )?;
    let policy = match worker.tls_policy {
        TlsPolicy::Fips => "fips (TLS 1.2 with extended master secret, TLS 1.3)",
        TlsPolicy::Strict => "strict (TLS 1.3)",
    };
    row(page, "TLS policy", policy)?;
    trust(page, worker)?;
    authority(page, worker)?;
    row(page, "Worker up", format_args!("{} s", worker.uptime_seconds))?;
    row(page, "Client connections", worker.connections)?;
    let interception = &master.interception;
    let state = match (interception.enabled, interception.attached) {
        (false, _) => "off",
        (true, true) => "on",
        (true, false) => "not attached",
    };
    match &interception.detail {
        Some(detail) => row(page, "Interception", format_args!("{state}: {detail}"))?,
        None => row(page, "Interception", state)?,
    }
    lost(page, worker.log_lost, master.log_lost)?;
    page.push_str("</dl>");
    warnings(page, view)?;
    products(page, worker)?;
    addresses(page, worker)?;
    upstream_tls(page, worker)?;
    client_tls(page, worker)?;
    if let Some(kernel) = &interception.kernel {
        page.push_str(
            "<h2>Agents</h2><div class=\"wide\"><table><tr><th>Agent</th><th>taken by</th><th>why</th></tr>",
        );
        for agent in &kernel.agents {
            write!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                Html(&agent.selector),
                agent.datapath.map_or("nothing", |taken| taken.name()),
                Html(&agent.why)
            )?;
        }
        if !kernel.interfaces.is_empty() {
            page.push_str("</table></div><h2>Interfaces</h2><div class=\"wide\"><table>");
            for interface in &kernel.interfaces {
                write!(page, "<tr><td>{}</td></tr>", Html(interface))?;
            }
        }
        if !kernel.leaked.is_empty() {
            page.push_str("</table></div><h2>Leaked</h2><div class=\"wide\"><table>");
            for leak in &kernel.leaked {
                write!(page, "<tr><td class=\"bad\">{}</td></tr>", Html(leak))?;
            }
        }
        page.push_str("</table></div><h2>Kernel events</h2><div class=\"wide\"><table><tr><th>event</th><th class=\"n\">count</th></tr>");
        for (event, n) in &kernel.counters {
            write!(page, "<tr><td>{}</td><td class=\"n\">{n}</td></tr>", Html(event))?;
        }
        page.push_str("</table></div>");
    }
    page.push_str(
        "<h2>Listeners</h2><div class=\"wide\"><table><tr><th>name</th><th>address</th><th>state</th></tr>",
    );
    for listener in &master.listeners {
        let class = if listener.bound { "" } else { " class=\"bad\"" };
        let state = listener.error.as_deref().unwrap_or("bound");
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td{class}>{}</td></tr>",
            Html(&listener.name),
            listener.address,
            Html(state)
        )?;
    }
    page.push_str("</table></div><p><a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readiness</a></p></body></html>");
    Ok(())
}

/// What somebody should do something about; nothing where all is well.
fn warnings(page: &mut String, view: &View) -> std::fmt::Result {
    if view.warnings.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>What is wrong, and what helps</h2><ul>");
    for warning in &view.warnings {
        write!(page, "<li><span class=\"bad\">{}</span>", Html(&warning.what))?;
        if let Some(cure) = &warning.cure {
            write!(page, "<br>{}", Html(cure))?;
        }
        page.push_str("</li>");
    }
    page.push_str("</ul>");
    Ok(())
}

fn products(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    page.push_str(
        "<h2>Products</h2><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Products\"><table><caption>State, rates \
         and times: of the last minute. Counts: since the worker started.</caption><tr>",
    );
    for (name, class) in [
        ("product", ""),
        ("state", ""),
        ("requests/s", "n"),
        ("bytes/s up", "n"),
        ("bytes/s down", "n"),
        ("p50", "n"),
        ("p99", "n"),
        ("ok", "n"),
        ("failed", "n"),
        ("bytes up", "n"),
        ("bytes down", "n"),
        ("failures", ""),
    ] {
        write!(page, "<th scope=\"col\" class=\"{class}\">{name}</th>")?;
    }
    page.push_str("</tr>");
    for product in &worker.products {
        let ProductStatus { recent, requests, .. } = product;
        let failures = requests.iter().filter(|(outcome, _)| *outcome != "ok");
        let named: Vec<String> = failures.map(|(outcome, n)| format!("{outcome} {n}")).collect();
        let ms = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.1} ms"));
        let class = if matches!(product.state, ProductState::Failing | ProductState::Down) {
            "bad"
        } else {
            ""
        };
        write!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"{class}\">{}</td>",
            Html(&product.title),
            product.state.name()
        )?;
        for number in [
            format!("{:.1}", recent.requests_per_second),
            format!("{:.0}", recent.bytes_up_per_second),
            format!("{:.0}", recent.bytes_down_per_second),
            ms(recent.p50_ms),
            ms(recent.p99_ms),
            product.ok().to_string(),
            product.failed().to_string(),
            product.bytes_up.to_string(),
            product.bytes_down.to_string(),
        ] {
            write!(page, "<td class=\"n\">{}</td>", Html(number))?;
        }
        write!(page, "<td>{}</td></tr>", Html(named.join(", ")))?;
    }
    page.push_str("</table></div>");
    Ok(())
}

/// Addresses of intakes, as connections met them; nothing while none was tried.
fn addresses(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    if worker.products.iter().all(|product| product.upstream.is_empty()) {
        return Ok(());
    }
    page.push_str(
        "<h2>Intake addresses</h2><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Intake addresses\"><table>\
         <tr><th scope=\"col\">product</th><th scope=\"col\">address</th><th scope=\"col\">name</th><th scope=\"col\">health</th>\
         <th scope=\"col\">last TLS</th><th scope=\"col\">last error</th><th scope=\"col\">name server's answer</th></tr>",
    );
    for product in &worker.products {
        for upstream in &product.upstream {
            let (class, health) = match upstream.health {
                Health::Ok => ("", "takes connections".to_owned()),
                Health::Ejected { failures, seconds } => (
                    "bad",
                    format!("asked last: failed {failures} times, checked again in {seconds} s"),
                ),
            };
            let error = upstream.last_error.as_ref();
            let error = error.map_or("-".to_owned(), |error| {
                format!("{}: {}", ago(error.seconds_ago), error.why)
            });
            let dns = upstream.dns.as_ref();
            let dns = dns.map_or("-".to_owned(), |dns| match (dns.age_s, &dns.problem) {
                (None, _) => "hosts file".to_owned(),
                (Some(age), None) => ago(age),
                (Some(age), Some(problem)) => format!("{}, not renewed: {problem}", ago(age)),
            });
            write!(
                page,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td class=\"{class}\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                Html(&product.title),
                upstream.address,
                Html(&upstream.name),
                Html(health),
                Html(upstream.tls.as_deref().unwrap_or("-")),
                Html(error),
                Html(dns)
            )?;
        }
    }
    page.push_str("</table></div>");
    Ok(())
}

fn upstream_tls(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    page.push_str(
        "<h2>TLS towards intakes</h2><div class=\"wide\"><table><tr><th>version</th><th>suite</th><th>group</th><th class=\"n\">handshakes</th></tr>",
    );
    for tls in &worker.upstream_tls {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            Html(&tls.version),
            Html(&tls.suite),
            Html(&tls.group),
            tls.handshakes
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

/// The local authority; nothing where there is none.
fn authority(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    let Some(status) = &worker.authority else {
        return Ok(());
    };
    let current = &status.current;
    match &status.warning {
        Some(warning) => row(
            page,
            "Local authority",
            format_args!("{}: {warning}", current.id()),
        ),
        None => row(
            page,
            "Local authority",
            format_args!("{}, until {}", current.id(), current.ends()),
        ),
    }
}

/// Sessions of Agents that speak HTTPS, and clients that do not trust us; nothing where there were none.
fn client_tls(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    let distrusting = &worker.https.distrusting;
    if !distrusting.is_empty() {
        page.push_str(
            "<h2>Clients that do not trust the local authority</h2><div class=\"wide\"><table><tr><th>client</th>\
             <th>asks for</th><th>how</th><th class=\"n\">handshakes</th><th>what helps</th></tr>",
        );
        for client in distrusting {
            let who = client
                .process
                .as_ref()
                .map_or_else(|| format!("network {}", client.network), ToString::to_string);
            write!(
                page,
                "<tr><td class=\"bad\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
                Html(who),
                Html(&client.name),
                Html(&client.said),
                client.handshakes,
                Html(cure(&client.name, client.process.as_ref()))
            )?;
        }
        page.push_str("</table></div>");
    }
    let sessions = &worker.https.sessions;
    if sessions.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<h2>TLS of Agents</h2><div class=\"wide\"><table><tr><th>handling</th><th>version</th><th>suite</th><th>group</th>\
         <th>policy</th><th class=\"n\">sessions</th></tr>",
    );
    for ClientTlsStatus { tls, sessions } in sessions {
        let class = if tls.below.is_some() { " class=\"bad\"" } else { "" };
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td{class}>{}</td><td class=\"n\">{sessions}</td></tr>",
            Html(&tls.decision),
            Html(&tls.version),
            Html(&tls.suite),
            Html(tls.group.as_deref().unwrap_or("-")),
            Html(
                tls.below
                    .as_deref()
                    .map_or("within".to_owned(), |below| format!("below: {below}"))
            ),
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

/// What servers are judged by beyond the roots, and the way to them; nothing where nothing is set.
fn trust(page: &mut String, worker: &WorkerStatus) -> std::fmt::Result {
    let trust = &worker.trust;
    if let Some(crls) = &trust.crls {
        let next = crls.next_update.as_deref().unwrap_or("-");
        row(
            page,
            "Revocation lists",
            format_args!(
                "{} in {}, the first expires {next}",
                crls.count,
                crls.folder.display()
            ),
        )?;
    }
    if !trust.pins.is_empty() {
        row(page, "Pins", trust.pins.len())?;
    }
    if let Some(certificate) = &trust.client_certificate {
        row(
            page,
            "Client certificate",
            format_args!("SHA-256 {}, ends {}", certificate.sha256, certificate.not_after),
        )?;
    }
    for session in &worker.upstream_sessions {
        let way = session
            .proxy
            .as_ref()
            .map_or("directly".to_owned(), |proxy| format!("through {proxy}"));
        let pin = session
            .pin
            .as_ref()
            .map_or(String::new(), |pin| format!(", pin {pin}"));
        let certificate = if session.client_certificate {
            ", client certificate presented"
        } else {
            ""
        };
        row(
            page,
            "Sessions",
            format_args!("{} {way}{pin}{certificate}", session.sessions),
        )?;
    }
    for alarm in &trust.alarms {
        write!(page, "<dt>Alarm</dt><dd class=\"bad\">{}</dd>", Html(alarm))?;
    }
    Ok(())
}

/// Log lines that were dropped; nothing while none was.
fn lost(page: &mut String, worker: Lost, master: Lost) -> std::fmt::Result {
    for (process, lost) in [("worker", worker), ("master", master)] {
        if lost.any() {
            write!(
                page,
                "<dt>Log</dt><dd class=\"bad\">lost by the {process}: {}</dd>",
                Html(lost)
            )?;
        }
    }
    Ok(())
}

fn row(page: &mut String, name: &str, value: impl Display) -> std::fmt::Result {
    write!(page, "<dt>{name}</dt><dd>{}</dd>", Html(value))
}

/// Text inside HTML. Listener errors and cgroup names come from outside.
struct Html<T>(T);

impl<T: Display> Display for Html<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        use proptest::prelude::*;
        proptest!(|(text in ".*")| {
            let escaped = Html(&text).to_string();
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']));
            let back = escaped
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&");
            prop_assert_eq!(back, text);
        });
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            Html("<a href='x'>\"&").to_string(),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;"
        );
    }
}
