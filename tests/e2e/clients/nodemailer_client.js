// Sends a fixed set of messages through a pool: `node nodemailer_client.js PACKAGE HOST PORT`.
// Dates, ids and boundaries are fixed, so that two runs compose the same octets.
"use strict";

const [name, host, port] = process.argv.slice(2);
const nodemailer = require(name);

const transport = nodemailer.createTransport({
  host,
  port: Number(port),
  secure: false,
  name: "client.test",
  pool: true,
  maxConnections: 3,
  maxMessages: 5,
});

const base = (id) => ({
  from: { name: "Jürgen Größe, Söhne & Co", address: "app@example.test" },
  to: [{ name: "Ánà Œuvre", address: "ana@example.test" }],
  subject: `Grüße ${id} ✓`,
  messageId: `<${name}-${id}@test>`,
  date: new Date("2026-11-21T09:12:01Z"),
  baseBoundary: `boundary-${id}`,
  text: `Hello ${id}\n.a line with a dot\n.\n..\nthe end`,
});

const messages = [];
for (let i = 0; i < 12; i += 1) messages.push(base(`plain-${i}`));
messages.push({ ...base("html"), html: "<p>Hellö</p>" });
messages.push({
  ...base("attachment"),
  attachments: [{ filename: "Zahlen äöü.bin", content: Buffer.alloc(300000, "0123456789abcdef\n") }],
});
messages.push({ ...base("utf8-address"), to: "jürgen@exämple.test" });
messages.push({ ...base("dsn"), dsn: { id: "envid-1", return: "headers", notify: ["failure", "delay"], recipient: "app@example.test" } });

(async () => {
  await transport.verify();
  const results = await Promise.all(messages.map((message) => transport.sendMail(message)));
  for (const { messageId, response, rejected } of results) {
    console.log(JSON.stringify({ messageId, response, rejected }));
  }
  transport.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
