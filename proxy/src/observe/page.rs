//! The status page: one HTML page, made here, with no outside resource and no script.

use std::fmt::{Display, Write};

use crate::catalog::TABLE;
use crate::observe::distrust::cure;
use crate::observe::http::Facts;
use crate::observe::logging::{self, Lost};
use crate::supervise::protocol::ClientTlsStatus;

const STYLE: &str = "
:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:1.8rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:#b00020;font-weight:600}@media(prefers-color-scheme:dark){.bad{color:#ff8a80}}dl{display:grid;grid-template-columns:max-content auto;gap:.2rem 1rem}
dt{font-weight:600}dd{margin:0}.wide{overflow-x:auto}";

/// The page as it is now.
pub fn render(facts: &Facts) -> String {
    let mut page = String::with_capacity(16 * 1024);
    // Writing into a String cannot fail.
    let _ = write(&mut page, facts);
    page
}

fn write(page: &mut String, facts: &Facts) -> std::fmt::Result {
    let master = facts.metrics.master();
    let module = facts.metrics.module();
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
    row(page, "Site", &facts.site)?;
    row(page, "Module", &module.version)?;
    row(
        page,
        "Certificate",
        module.certificate.as_deref().unwrap_or("none"),
    )?;
    row(page, "TLS policy", facts.tls_policy)?;
    trust(page, facts)?;
    authority(page, facts)?;
    row(
        page,
        "Worker up",
        format_args!("{} s", facts.started.elapsed().as_secs()),
    )?;
    row(page, "Client connections", facts.metrics.connections())?;
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
    lost(page, logging::lost(), master.log_lost)?;
    page.push_str("</dl>");
    products(page, facts)?;
    upstream_tls(page, facts)?;
    client_tls(page, facts)?;
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

fn products(page: &mut String, facts: &Facts) -> std::fmt::Result {
    page.push_str(
        "<h2>Products</h2><div class=\"wide\"><table><tr><th>product</th><th class=\"n\">ok</th><th class=\"n\">failed</th>\
         <th class=\"n\">bytes up</th><th class=\"n\">bytes down</th><th>failures</th></tr>",
    );
    for product in facts.metrics.products() {
        let title = TABLE
            .iter()
            .find(|e| e.name == product.name)
            .map_or(product.name.as_str(), |e| e.title);
        let ok = product.requests.get("ok").copied().unwrap_or_default();
        let failures: Vec<String> = product
            .requests
            .iter()
            .filter(|(k, _)| *k != "ok")
            .map(|(k, n)| format!("{k} {n}"))
            .collect();
        let failed: u64 = product
            .requests
            .iter()
            .filter(|(k, _)| *k != "ok")
            .map(|(_, n)| n)
            .sum();
        write!(
            page,
            "<tr><td>{}</td><td class=\"n\">{ok}</td><td class=\"n\">{failed}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            Html(title),
            product.bytes_up,
            product.bytes_down,
            Html(failures.join(", "))
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn upstream_tls(page: &mut String, facts: &Facts) -> std::fmt::Result {
    page.push_str(
        "<h2>TLS towards intakes</h2><div class=\"wide\"><table><tr><th>version</th><th>suite</th><th>group</th><th class=\"n\">handshakes</th></tr>",
    );
    for tls in facts.metrics.upstream_tls() {
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
fn authority(page: &mut String, facts: &Facts) -> std::fmt::Result {
    let Some(status) = facts.metrics.authority() else {
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
fn client_tls(page: &mut String, facts: &Facts) -> std::fmt::Result {
    let distrusting = facts.metrics.distrusting();
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
    let sessions = facts.metrics.client_tls();
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
fn trust(page: &mut String, facts: &Facts) -> std::fmt::Result {
    let trust = facts.metrics.trust();
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
    for session in facts.metrics.upstream_sessions() {
        let way = session
            .proxy
            .map_or("directly".to_owned(), |proxy| format!("through {proxy}"));
        let pin = session.pin.map_or(String::new(), |pin| format!(", pin {pin}"));
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
    fn text_cannot_become_markup() {
        assert_eq!(
            Html("<a href='x'>\"&").to_string(),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;"
        );
    }
}
