#!/usr/bin/env bash
# Every table and chart of README and docs/results.md that is of Fashion-MNIST: days on two cores.
# What a command has made stays in the work directory: the script goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
data=(--config=configs/fashion_mnist.py --workdir=out/fashion_mnist)
narrow=convnet3:width=32
residual=resnet18:stem=cifar:width=16
transformer=vit:patch=7:dim=96:depth=3:heads=4

table() {  # name of the JSON, protocol, then the arguments
    .venv/bin/python -m benchmarks.table "${data[@]}" --protocols="$2" \
        --json="docs/results/$1.json" "${@:3}"
}

ladder() {  # name of the JSON, protocol, then the arguments
    .venv/bin/python -m ot_dd.evaluate "${data[@]}" --protocol="$2" --seeds=1 \
        --students=convnet3:width=128 --json="docs/results/$1.json" "${@:3}"
}

hard=ot_dd,no_otg,no_refine,mean_matching,real_start,random,random_decoded,kmeans,kmeans_features,herding,kcenter,el2n,forgetting,collage,prototypes,quantised,d4m,diffusion,minimax,igd
soft=ot_dd,no_lia,no_otm,identity_plan,${hard#ot_dd,}
# Tables of ten images have the config's window, all others its former one.
early=--config.guidance.transport.window="(12, 19)"
main=ot_dd,no_otg,no_refine,mean_matching,random,kmeans_features,diffusion,igd

table table_fashion_mnist edc_soft --ipc=10 --sets=5 --seeds=5 --students=$narrow \
    --names="${soft/no_refine/no_refine,early_no_refine}"
table table_fashion_mnist_transport edc_soft,dc_hard --ipc=10 --students=$narrow \
    --names=ot_dd,mean_matching,balanced_transport,sharp_transport,no_otg,greedy,noisy_latents,feature_guidance,l1_cost,weak_guidance,strong_guidance,early_guidance
table table_fashion_mnist_hard dc_hard --ipc=10 --sets=5 --seeds=5 --students=$narrow \
    --names="${hard/no_refine/no_refine,early_no_refine}"
table table_fashion_mnist_students edc_soft --ipc=10 --students=$residual,$transformer \
    --names="${soft/no_refine/no_refine,early_no_refine}"
table table_fashion_mnist_students_hard dc_hard --ipc=10 --students=$residual,$transformer \
    --names="${hard/no_refine/no_refine,early_no_refine}"
table table_fashion_mnist_ipc50 edc_soft "$early" --ipc=50 --students=$narrow --names="$soft"
table table_fashion_mnist_ipc50_hard dc_hard "$early" --ipc=50 --students=$narrow --names="$hard"
table table_fashion_mnist_ipc50_transformer edc_soft "$early" --ipc=50 --students=$transformer \
    --names="$soft"
table table_fashion_mnist_ipc50_transformer_hard dc_hard "$early" --ipc=50 --students=$transformer \
    --names="$hard"
table table_fashion_mnist_ipc50_resnet edc_soft "$early" --ipc=50 --students=$residual --names="$soft"
table table_fashion_mnist_ipc50_resnet_hard dc_hard "$early" --ipc=50 --seeds=1 --students=$residual \
    --names="$hard"
table table_fashion_mnist_ipc50_resnet_main_hard dc_hard "$early" --ipc=50 --students=$residual \
    --names="$main"
table table_fashion_mnist_ipc1 edc_soft "$early" --ipc=1 --students=$narrow,$residual,$transformer \
    --names="$soft,balanced_transport"
table table_fashion_mnist_ipc1_hard dc_hard "$early" --ipc=1 --students=$narrow,$residual,$transformer \
    --names="$hard,balanced_transport"
ladder ladder_fashion_mnist_plain dc_plain "$early" --baselines=ot_dd,random --sets=5
ladder ladder_fashion_mnist_plain_ipc1 dc_plain "$early" --config.ipc=1 --baselines=ot_dd,random --sets=5
ladder ladder_fashion_mnist_plain_ipc50 dc_plain "$early" --config.ipc=50 --baselines=ot_dd,random --sets=4
ladder ladder_fashion_mnist dc_hard "$early" --baselines=ot_dd,random --sets=5
ladder ladder_fashion_mnist_dsa dsa_hard "$early" --baselines=ot_dd,random --sets=5
ladder ladder_fashion_mnist_ipc1 dc_hard "$early" --config.ipc=1 --baselines=ot_dd,random,herding --sets=5
ladder ladder_fashion_mnist_ipc50 dc_hard "$early" --config.ipc=50 --baselines=ot_dd,random,kmeans_features --sets=3
ladder ladder_fashion_mnist_dsa_ipc50 dsa_hard "$early" --config.ipc=50 --baselines=ot_dd,random,kmeans_features --sets=3
# All training images, by fewer passes.
.venv/bin/python -m ot_dd.evaluate "${data[@]}" --protocol=dc_hard --students=$narrow \
    --json=docs/results/all_fashion_mnist.json --config.ipc=5400 --baselines=random --sets=1 --seeds=3 \
    --epochs=20
.venv/bin/python docs/tables.py --page=docs/results.md
.venv/bin/python docs/tables.py --page=README.md
.venv/bin/python docs/charts.py
