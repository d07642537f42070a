/**
 * `GET /stats;csv`: HAProxy 2.6's statistics, column by column, for monitoring that reads them already. What HAProxy
 * counts and this node has no equal of (agents, caches, its own protocol engines) stays empty, as it does there.
 */
import type { UnderstudyNode } from '../node.ts';
import { backendRow, frontendRow, modeOf, PoolSums, serverRow } from './statsRows.ts';
import type { Row } from './statsRows.ts';
import { StatsTallies } from './statsTallies.ts';

/** The order and names of HAProxy 2.6, those of its TLS, HTTP/2 and HTTP/1 modules at the end. */
const COLUMNS =
  'pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,check_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie,mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,cache_hits,srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur,used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,agg_check_status,-,ssl_sess,ssl_reused_sess,ssl_failed_handshake,h2_headers_rcvd,h2_data_rcvd,h2_settings_rcvd,h2_rst_stream_rcvd,h2_goaway_rcvd,h2_detected_conn_protocol_errors,h2_detected_strm_protocol_errors,h2_rst_stream_resp,h2_goaway_resp,h2_open_connections,h2_backend_open_streams,h2_total_connections,h2_backend_total_streams,h1_open_connections,h1_open_streams,h1_total_connections,h1_total_streams,h1_bytes_in,h1_bytes_out,h1_spliced_bytes_in,h1_spliced_bytes_out'.split(
    ',',
  );

/** Rows made in one turn of the loop: about a millisecond. */
const ROWS_PER_TURN = 20;
/** HAProxy's rates are those of the last second. */
const SAMPLE_EVERY_MS = 1_000;

const nextTurn = (): Promise<void> => new Promise((done) => setImmediate(done));

const cell = (value: string | number | undefined): string => {
  if (value === undefined) return '';
  const text = typeof value === 'number' ? String(Math.round(value)) : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

/** Watches what only becomes known over time (rates, times of changes), and writes the table. */
export class Stats {
  #node: UnderstudyNode;
  #tallies: StatsTallies;
  #sampler: NodeJS.Timeout;

  constructor(node: UnderstudyNode) {
    this.#node = node;
    this.#tallies = new StatsTallies(node.system);
    const sample = () => node.dataPlane.sampleRates(node.clock.monoUs() / 1000);
    sample();
    this.#sampler = setInterval(sample, SAMPLE_EVERY_MS).unref();
  }

  stop(): void {
    clearInterval(this.#sampler);
    this.#tallies.stop();
  }

  /** The table in parts, made in many turns of the loop; each row is true for its own moment. */
  async *csv(): AsyncGenerator<string> {
    yield `# ${COLUMNS.join(',')},\n`;
    let part = '';
    let rows = 0;
    for (const row of this.#rows()) {
      part += `${COLUMNS.map((column) => cell(row[column])).join(',')},\n`;
      if (++rows % ROWS_PER_TURN !== 0) continue;
      yield part;
      part = '';
      await nextTurn();
    }
    yield part;
  }

  *#rows(): Generator<Row> {
    const node = this.#node;
    const world = { node, tallies: this.#tallies };
    // One configuration for the whole table, also when a reload comes between two turns.
    const { config } = node;
    let iid = 0;
    for (const [name, frontend] of Object.entries(config.frontends))
      yield { ...frontendRow(world, name, frontend), iid: ++iid, sid: 0 };
    for (const [name, backend] of Object.entries(config.backends)) {
      const of = { mode: modeOf(config, name), iid: ++iid };
      const sums = new PoolSums();
      for (const [index, server] of backend.servers.entries()) {
        const row = serverRow(world, name, server, of.mode, sums);
        if (row) yield { ...row, ...of, sid: index + 1 };
      }
      yield { ...backendRow(world, name, backend, of.mode, sums), ...of, sid: 0 };
    }
  }
}
