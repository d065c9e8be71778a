#!/usr/bin/env bash
# A study as a job of Slurm: Ray on every node of the job, and the study on the first. Written by `cs330ray submit --slurm`.
#SBATCH --job-name=cs330ray-protonet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=8:00:00
#SBATCH --partition=gpu
#SBATCH --account=cs330
#SBATCH --output="/home/you/runs/slurm/protonet/jobs/0001/log.txt"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --dependency=singleton
set -uo pipefail

folder=/home/you/runs/slurm/protonet/jobs/0001 # of this job, on the shared disk: the study file, this script, its log
home=/home/you/runs/slurm/protonet/home # on the shared disk: a whole copy of the ledger, checkpoints, what trials print
requeues=10 # the job puts itself back into the queue so often, when its time is over or it is preempted
gpus=4 # of a node
own=/tmp/cs330ray-$SLURM_JOB_ID # on each node's own disk: the ledger while it is written, and Ray's files

# When the job's time is nearly over, Slurm signals this script alone; when it is preempted, the tasks alone, and the
# first of them passes it on. Either way the study ends in order, and the newest copy of its ledger is in $home.
asked=no study=
trap 'asked=yes; [[ -n $study ]] && kill -USR1 "$study" 2>/dev/null' TERM
trap 'asked=yes; [[ -n $study ]] && kill -TERM "$study" 2>/dev/null' USR2

export PATH=/home/you/cs330ray/.venv/bin:$PATH CS330RAY_SUBMITTED='cs330ray submit protonet --set resources.gpus=1 --slurm --nodes=2 --gpus-per-node=4 --cpus-per-node=16 --time=8:00:00 --partition=gpu --account=cs330'
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1
rm -f "$folder/ended"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$folder/token")

# One task on each node starts Ray there. The first is the head. Ports are free ones and Ray's folder is the job's own,
# so that another job may run on the same node. Nothing here calls `ray stop`, which would end that job's Ray, too.
ip=$(hostname -I | cut -d ' ' -f 1)
read -r port client < <(python -c 'import socket
made = [socket.create_server(("", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in made))')
export folder own ip port client gpus script=$$
node() {
  mkdir -m 700 -p "$own" && [[ -O $own && ! -L $own ]] || exit 1
  options=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --object-store-memory=134217728 --temp-dir="$own/ray-$SLURM_PROCID"
    --dashboard-agent-listen-port=0 --log-style=record --block)
  if ((SLURM_PROCID == 0)); then
    options+=(--head --node-ip-address="$ip" --port="$port" --ray-client-server-port="$client" --include-dashboard=false)
    trap 'kill -USR2 "$script"' TERM
  else
    until (: <>"/dev/tcp/$ip/$port") 2>/dev/null; do sleep 1; done
    options+=(--address="$ip:$port")
  fi
  ray start "${options[@]}" >"$folder/ray-$SLURM_PROCID.log" 2>&1 &
  wait
}
clean() { [[ -e $own/not-copied ]] || rm -rf "$own"; }
export -f node clean
srun --export=ALL --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c node &
ray=$!

RAY_ADDRESS=$ip:$port python -m cs330ray.cluster.slurm.keeper "$home" "$own" "$folder" run /home/you/runs/slurm/protonet/jobs/0001/protonet.toml --set resources.gpus=1 --no-mirror &
study=$!
[[ $asked == yes ]] && kill -TERM "$study"
while kill -0 "$study" 2>/dev/null; do wait "$study"; done # a signal ends a `wait`, not the study
code=$(cat "$folder/ended" 2>/dev/null || { [[ $asked == yes ]] && echo 130; } || echo 1)

# A job that somebody has cancelled is no longer RUNNING. Slurm is busiest when the time of many jobs is over.
for _ in {1..10}; do
  state=$(squeue --noheader --all --jobs="$SLURM_JOB_ID" --format=%T) && break
  sleep 3
done
trap : TERM USR2 # that the tasks end is no news from here on
kill -TERM "$ray" 2>/dev/null
while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
rm -f "$folder/token"
[[ $state == RUNNING ]] && srun --export=ALL --ntasks-per-node=1 bash -c clean
clean
if [[ $asked == yes && $code == 130 && $state == RUNNING && ! -e $folder/stopped ]]; then
  if ((${SLURM_RESTART_COUNT:-0} < requeues)); then
    echo "job $SLURM_JOB_ID has to end before its study; it resumes when its turn comes again"
    scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID does not come again; the same submit resumes the study"
  else
    echo "job $SLURM_JOB_ID has to end before its study, and it has begun $((requeues + 1)) times; the same submit resumes it"
  fi
fi
exit "$code"
