"""Sends the message on standard input twice over one connection."""
import smtplib
import sys

host, port = sys.argv[1], int(sys.argv[2])
content = sys.stdin.buffer.read()
with smtplib.SMTP(host, port, local_hostname="client.test", timeout=30) as smtp:
    smtp.set_debuglevel(1)
    refused = smtp.sendmail("app@example.test", ["ana@example.test"], content)
    assert not refused, refused
    refused = smtp.sendmail(
        "app@example.test",
        ["ana@example.test", "bob@example.test"],
        content,
        mail_options=["BODY=8BITMIME", "RET=HDRS"],
        rcpt_options=["NOTIFY=FAILURE"],
    )
    assert not refused, refused
