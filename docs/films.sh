#!/bin/sh
# Trains what the pictures of README.md show and draws them anew, in about half an hour of two cores:
#     make films, or sh docs/films.sh [DIRECTORY FOR THE RUNS]
# Runs that are there already are not trained again.
set -eu
cd "$(dirname "$0")/.."
runs=${1:-runs/films}
evenflow="${EVENFLOW:-.venv/bin/evenflow}"

trained() { # NAME TASK OPTIONS...: a run of that name
    name=$1
    shift
    [ -d "$runs/$name" ] || $evenflow train "$@" --out "$runs/$name"
}

film() { # NAME ARGUMENTS OF view...: docs/view-NAME.gif
    name=$1
    shift
    rm -f "docs/view-$name.gif"
    $evenflow view "$@" --record "docs/view-$name.gif"
}

mkdir -p "$runs"
trained poles-4 cart-pole --poles 4 --gradients R C --seeds 8 --epochs 300
cp "$runs/poles-4/losses.png" docs/cart-pole-4.png
trained poles cart-pole --poles 2 --gradients R C --seeds 2 --epochs 150
film cart-pole --compare "$runs/poles@R" "$runs/poles@C" --size 360 --speed 0.25
film gradient "$runs/poles@C" --gradient R M C --size 280 --speed 1
trained chain cart-pendulum --gradients R C --seeds 2 --epochs 100 --threads 1
film cart-pendulum --compare "$runs/chain@R" "$runs/chain@C" --size 300 --speed 0.25
trained guidance guidance --gradients R C --seeds 2 --epochs 60
film guidance --compare "$runs/guidance@R" "$runs/guidance@C" --size 300
trained quantum-3 quantum --target 3 --gradients R --seeds 2 --epochs 40
film quantum "$runs/quantum-3@R" --size 300
trained orbit n-body --gradients R C --seeds 2 --epochs 60 --threads 1
film n-body "$runs/orbit@R" --size 300
trained orbit-3d n-body --dim 3 --gradients R C --seeds 2 --epochs 60 --threads 1
film n-body-3d "$runs/orbit-3d@R" --size 300
trained swarm swarm --gradients R C --seeds 2 --epochs 16 --batch-size 2 --train-samples 32 --test-samples 16 \
    --learning-rates 1e-2 --clippings norm --threads 1
film swarm "$runs/swarm@C" --size 300 --speed 0.5
between="every-step(clip-norm(decay-rate(R, 15), 0.1))"
trained fluid fluid --sound-speed 10 --gradients "$between" --seeds 1 --first-seed 5 --epochs 1 --learning-rates 0.005 \
    --clippings "norm(0.1)" --train-samples 64 --test-samples 32 --batch-size 4 --checkpoint-every 1
film fluid "$runs/fluid@$between" --size 300 --speed 0.5
