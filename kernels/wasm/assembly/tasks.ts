// One op number, one kernel.
import { attendMergeTask, attendTask } from "./attend";
import { blockCentresTask, ropeTask, sealTask } from "./append";
import { chooseTask } from "./best";
import { matmulTask } from "./matmul";
import { embedFloatTask, packFloatTask } from "./matmul-f32";
import { embedInt4Task, packInt4Task } from "./matmul-int4";
import { embedInt8Task, packInt8Task, quantizeRowsTask } from "./matmul-int8";
import {
  OP_ARGMAX,
  OP_ATTEND,
  OP_BLOCK_CENTRES,
  OP_ATTEND_MERGE,
  OP_CHOOSE,
  OP_EMBED_BF16,
  OP_EMBED_F32,
  OP_EMBED_INT4,
  OP_EMBED_INT8,
  OP_GATHER_ROWS,
  OP_MATMUL_BF16,
  OP_MATMUL_F32,
  OP_MATMUL_INT4,
  OP_MATMUL_INT8,
  OP_PACK_BF16,
  OP_PACK_F32,
  OP_PACK_INT4,
  OP_PACK_INT8,
  OP_QUANTIZE_QUERIES,
  OP_QUANTIZE_ROWS,
  OP_RMS_NORM,
  OP_ROPE,
  OP_SCORE_PAGES,
  OP_SCORE_TOKENS,
  OP_SEAL,
  OP_SILU_MUL,
  OP_VOTE_STATS,
  OP_VOTE_SUM,
} from "./ops";
import { argmaxTask, gatherRowsTask, rmsNormTask, siluMulTask } from "./row-ops";
import { quantizeQueriesTask, scorePagesTask } from "./score-pages";
import { scoreTokensTask } from "./score-tokens";
import { voteStatsTask, voteSumTask } from "./votes";

/** Runs one task of an op on a thread; an unknown op is a trap. */
export function runTask(op: i32, task: i32, thread: i32): void {
  switch (op) {
    case OP_EMBED_F32: return embedFloatTask<f32>(task);
    case OP_EMBED_BF16: return embedFloatTask<u16>(task);
    case OP_EMBED_INT4: return embedInt4Task(task);
    case OP_EMBED_INT8: return embedInt8Task(task);
    case OP_RMS_NORM: return rmsNormTask(task);
    case OP_SILU_MUL: return siluMulTask(task);
    case OP_GATHER_ROWS: return gatherRowsTask(task);
    case OP_PACK_F32: return packFloatTask<f32>(task);
    case OP_PACK_BF16: return packFloatTask<u16>(task);
    case OP_PACK_INT4: return packInt4Task(task);
    case OP_PACK_INT8: return packInt8Task(task);
    case OP_MATMUL_F32:
    case OP_MATMUL_BF16:
    case OP_MATMUL_INT4:
    case OP_MATMUL_INT8: return matmulTask(op, task);
    case OP_QUANTIZE_ROWS: return quantizeRowsTask(task);
    case OP_ROPE: return ropeTask(task);
    case OP_SEAL: return sealTask(task, thread);
    case OP_QUANTIZE_QUERIES: return quantizeQueriesTask(task);
    case OP_SCORE_PAGES: return scorePagesTask(task);
    case OP_SCORE_TOKENS: return scoreTokensTask(task, thread);
    case OP_VOTE_STATS: return voteStatsTask(task);
    case OP_VOTE_SUM: return voteSumTask(task);
    case OP_CHOOSE: return chooseTask(task);
    case OP_ARGMAX: return argmaxTask(task);
    case OP_BLOCK_CENTRES: return blockCentresTask(task, thread);
    case OP_ATTEND: return attendTask(task, thread);
    case OP_ATTEND_MERGE: return attendMergeTask(task, thread);
    default: unreachable();
  }
}
