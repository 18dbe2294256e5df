#!/usr/bin/env bash
# Every table and chart of docs/results.md that is of Fashion-MNIST: hours on two cores.
# What a command has made stays in the work directory: the script goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
data=(--config=configs/fashion_mnist.py --workdir=out/fashion_mnist)
narrow=convnet3:width=32

table() {  # name of the JSON, then the arguments
    .venv/bin/python -m benchmarks.table "${data[@]}" --protocols=edc_soft \
        --json="docs/results/$1.json" "${@:2}"
}

ladder() {
    .venv/bin/python -m ot_dd.evaluate "${data[@]}" --protocol=dc_hard --seeds=1 \
        --students=convnet3:width=128 --json="docs/results/$1.json" "${@:2}"
}

table table_fashion_mnist --ipc=10 --sets=5 --students=$narrow \
    --names=ot_dd,no_lia,no_otm,identity_plan,no_otg,no_refine,mean_matching,real_start,random,kmeans,kmeans_features,herding,quantised,d4m,diffusion,minimax,igd
table table_fashion_mnist_students --ipc=10 --sets=5 --seeds=1 \
    --students=resnet18:stem=cifar:width=16,vit:patch=7:dim=96:depth=3:heads=4 \
    --names=ot_dd,random,kmeans_features
table table_fashion_mnist_ipc50 --ipc=50 --students=$narrow \
    --names=ot_dd,no_refine,mean_matching,random,kmeans_features,herding
# Made when the transport in the students' loss weighed less, and plain samples were as
# little guided as ours.
table table_fashion_mnist_ipc1 --ipc=1 --config.student.ot_weight=0.1 \
    --config.denoiser.plain_guidance_scale=0.0 \
    --students=$narrow,vit:patch=7:dim=96:depth=3:heads=4 \
    --names=ot_dd,no_otg,no_refine,mean_matching,balanced_transport,random,kmeans,kmeans_features,herding,prototypes,d4m,diffusion,minimax
ladder ladder_fashion_mnist --baselines=ot_dd,random --sets=3
ladder ladder_fashion_mnist_ipc1 --config.ipc=1 --baselines=ot_dd,random,herding --sets=5
.venv/bin/python docs/tables.py --page=docs/results.md
.venv/bin/python docs/charts.py
