# Creates /tmp/both with three models (README.md, "Two models, two versions"). Your own /tmp/both is
# kept as /tmp/both.old.
set -eu
cd "$(dirname "$0")/.."
if [ -e /tmp/both ] && [ ! -e /tmp/both.old ]; then mv /tmp/both /tmp/both.old; fi
rm -rf /tmp/both
mkdir -p /tmp/both/lab /tmp/both/v1 /tmp/both/v2
cp -r tinyvit/settings.json tinyvit/mlserver_timm /tmp/both
cp lab/2-top-5/serve-model.py /tmp/both/lab
cat > /tmp/both/lab/model-settings.json <<END
{"name": "lab", "implementation": "serve-model.TinyViTModel", "parameters": {"uri": "$PWD/tinyvit/sample"}}
END
for version in v1 v2; do
    cat > /tmp/both/$version/model-settings.json <<END
{"name": "tinyvit", "implementation": "mlserver_timm.TimmClassifier",
 "parameters": {"version": "$version", "uri": "$PWD/tinyvit/sample"}}
END
done
