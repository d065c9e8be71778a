# To be sourced in the checkout (`. clusters/aws.sh`) by bash or zsh: the region that cluster.yaml names, and what
# clusters/aws.yaml has made there. Nothing of an earlier call is left standing where something is not found.
BUCKET="" DATABASE="" GROUP="" INSTANCE=""
AWS_REGION=$(sed -n 's/^  region: *\([a-z0-9-]*\).*/\1/p' cluster.yaml) # goes before AWS_DEFAULT_REGION
export AWS_REGION AWS_DEFAULT_REGION="$AWS_REGION"
if [ -z "$AWS_REGION" ]; then
  echo "clusters/aws.sh: a region is needed in cluster.yaml, but there is none; call it in the checkout" >&2
  return 1
fi

_made() {
  aws cloudformation describe-stacks --stack-name cs330ray --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue" --output text
}

if BUCKET=$(_made Bucket) && DATABASE=$(_made Database) && GROUP=$(_made SecurityGroup) && INSTANCE=$(_made Instance) &&
  [ -n "$BUCKET" ] && [ -n "$DATABASE" ] && [ -n "$GROUP" ] && [ -n "$INSTANCE" ]; then
  echo "$AWS_REGION: bucket $BUCKET, database $DATABASE, security group $GROUP"
else
  BUCKET="" DATABASE="" GROUP="" INSTANCE=""
  echo "$AWS_REGION: nothing made by clusters/aws.yaml is found there" >&2
  return 1
fi
