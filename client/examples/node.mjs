// A client of runhistd without packages: `node node.mjs [SOCKET]` records a run and follows it to its end.
// varlink is JSON objects ended by NUL, and replies come in the order of their calls: that is all there is to it.
import { randomUUID } from "node:crypto";
import net from "node:net";
import { homedir } from "node:os";

const path = process.argv[2] ?? process.env.RUNHIST_SOCKET ?? `${homedir()}/.local/state/runhist/dev.runhist.History`;

function connect() {
  const socket = net.connect(path).setEncoding("utf8"); // which also joins characters that two reads cut in half
  const waiting = []; // what takes the replies of each open call, oldest first
  let rest = "";
  socket.on("data", (text) => {
    const frames = (rest + text).split("\0");
    rest = frames.pop();
    for (const reply of frames.map((frame) => JSON.parse(frame))) {
      const take = reply.continues ? waiting[0] : waiting.shift();
      take(reply.error && new Error(`${reply.error} ${JSON.stringify(reply.parameters)}`), reply.parameters);
    }
  });
  socket.on("error", () => {}).on("close", () => waiting.forEach((take) => take(new Error(`lost ${path}`))));
  const send = (method, parameters, take, more) => {
    waiting.push(take);
    socket.write(JSON.stringify({ method: `dev.runhist.History.${method}`, parameters, more }) + "\0");
  };
  const call = (method, parameters) =>
    new Promise((resolve, reject) => send(method, parameters, (error, reply) => (error ? reject(error) : resolve(reply))));
  const end = () => {
    waiting.length = 0;
    socket.end();
  };
  return { call, follow: (parameters, take) => send("Follow", parameters, take, true), end };
}

const recording = connect();
const following = connect();
const run = { run_id: `node-${randomUUID()}`, workflow: "node", title: "From Node" };
const { epoch } = await recording.call("BeginRun", { run, lease_key: randomUUID() });
following.follow({ cursor: { position: 0 }, run_id: run.run_id }, (error, reply) => {
  if (error) throw error;
  for (const { event } of reply.items) console.log(event.seq, event.kind, JSON.stringify(event.data));
  if (reply.items.some(({ event }) => event.kind === "run.completed")) following.end();
});
const append = { run_id: run.run_id, epoch, writer: randomUUID() };
const sent = ["Grüße aus Node", "line 2"].map((text, i) =>
  recording.call("Append", { ...append, first_n: i + 1, events: [{ type: "output", data: { text } }] })); // without waiting
await Promise.all(sent);
const { last_seq } = await recording.call("Append", { ...append, first_n: 3, events: [{ type: "run.completed" }] });
console.log(`stored up to seq ${last_seq}`);
recording.end();
