//! The parts work without Postgate: what fails elsewhere is then Postgate's doing.

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::mail::{assert_same, below_received, message, with_body};
use crate::support::postfix::{PASSWORD, Postfix, USER};
use crate::support::sink::{Act, Fault, Sink, Stage};
use crate::support::{mail, tools};

#[test]
fn the_sink_keeps_every_octet() {
    let sink = Sink::start();
    let content = with_body("octets", b".\r\n..\r\n.dot\r\nbare \n.\nlf \xe4\xf6\r\n\r\n");
    let mut client = Client::hello(sink.address);
    client.send("a@example.test", &["b@example.test", "c@example.test"], &content);
    let got = sink.wait_for("octets@test", PATIENCE);
    assert_eq!(got.mail, "<a@example.test>");
    assert_eq!(got.recipients, ["<b@example.test>", "<c@example.test>"]);
    let bare_lf_dot_is_stuffed_too =
        mail::with_body("octets", b".\r\n..\r\n.dot\r\nbare \n..\nlf \xe4\xf6\r\n\r\n");
    assert_same("sink", &got.content, &bare_lf_dot_is_stuffed_too);
}

#[test]
fn the_sink_fails_as_it_is_told_and_as_often() {
    let sink = Sink::start();
    let send = |client: &mut Client| {
        client.command("MAIL FROM:<a@example.test>").expect(250);
        for to in ["b", "bad", "c"] {
            client.command(&format!("RCPT TO:<{to}@example.test>"));
        }
        client.try_data(&message("fault"))
    };
    let rule = |stage, act, only| Fault { stage, act, only, times: 1 };
    sink.fail(&[rule(Stage::Rcpt, Act::Reply("550 5.1.1 no"), "<bad@")]);
    send(&mut Client::hello(sink.address)).unwrap().expect(250);
    assert_eq!(sink.accepted()[0].recipients, ["<b@example.test>", "<c@example.test>"]);

    sink.fail(&[rule(Stage::EndOfData, Act::Reply("451 4.3.0 later"), "")]);
    send(&mut Client::hello(sink.address)).unwrap().expect(451);
    sink.fail(&[rule(Stage::Content, Act::Drop, "")]);
    send(&mut Client::hello(sink.address)).unwrap_err();
    sink.fail(&[rule(Stage::EndOfData, Act::LoseReply, "")]);
    send(&mut Client::hello(sink.address)).unwrap_err();
    assert_eq!(sink.struck(), 4);
    send(&mut Client::hello(sink.address)).unwrap().expect(250);
    assert_eq!(sink.counts()["fault@test"], 3);
}

#[test]
fn a_sink_that_went_down_comes_back_on_the_same_port() {
    let mut sink = Sink::start();
    let mut open = Client::hello(sink.address);
    sink.go_down();
    assert!(open.try_command("NOOP").is_err());
    assert!(Client::try_connect(sink.address, None).is_err());
    sink.up();
    Client::hello(sink.address).send("a@b.test", &["c@d.test"], &message("back"));
    sink.wait_for("back@test", PATIENCE);
}

#[test]
fn postfix_relays_for_its_network_and_for_who_logs_in() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);

    let content = message("direct");
    tools::swaks(postfix.plain, &content, &[]).expect_code(0);
    let got = sink.wait_for("direct@test", PATIENCE);
    let (_, rest) = below_received(&got.content, 1);
    assert_same("swaks", rest, &content);

    let content = message("login");
    let login = ["--tls", "--auth", "PLAIN", "-au", USER, "-ap", PASSWORD];
    tools::swaks(postfix.submission, &content, &login).expect_code(0);
    sink.wait_for("login@test", PATIENCE);
    // 24: a recipient was refused. 28: the login was.
    tools::swaks(postfix.submission, &content, &["--tls"]).expect_code(24);
    let login = ["--tls", "--auth", "PLAIN", "-au", USER, "-ap", "wrong"];
    tools::swaks(postfix.submission, &content, &login).expect_code(28);
}

#[test]
fn nmap_finds_an_open_relay() {
    let sink = Sink::start();
    let said = tools::nmap_open_relay(sink.address).expect_code(0).stdout;
    assert!(said.contains("Server is an open relay"), "{said}");
}

#[test]
fn every_client_sends_to_a_server_that_accepts_all() {
    let sink = Sink::start();
    let content = mail::with_body("clients", b".dot\r\nline\r\n");
    tools::swaks(sink.address, &content, &["--pipeline"]).expect_code(0);
    tools::curl(sink.address, &content, &[]).expect_code(0);
    tools::msmtp(sink.address, &content).expect_code(0);
    tools::smtplib(sink.address, &content).expect_code(0);
    for accepted in sink.accepted() {
        assert_same(&accepted.mail, &accepted.content, &content);
    }
    assert_eq!(sink.accepted().len(), 5);
    for package in ["nodemailer-6", "nodemailer-current"] {
        let said = tools::nodemailer(sink.address, package).expect_code(0).stdout;
        assert_eq!(said.lines().count(), 16, "{said}");
    }
}
