require 'base64'
require_relative '../../../lib/community/app_handler'

# What the marketplace certifies: one VM with the context of metadata.yaml. dduct serves with the values from there, keeps
# what it is asked for, and lets nobody in without the password.
describe 'Appliance Certification' do
    include_context('vm_handler')

    PORT = APP_CONTEXT_PARAMS[:ONEAPP_DDUCT_LISTEN_PORT]
    USER = APP_CONTEXT_PARAMS[:ONEAPP_DDUCT_ACCESS_USER]
    OBJECT = 'http://deb.debian.org/debian/pool/main/h/hello/hello_2.10-3_amd64.deb'

    # The harness puts each command into double quotes; in base64 nothing of it is expanded there.
    def on_vm(script)
        @info[:vm].ssh("echo #{Base64.strict_encode64(script)} | base64 -d | bash")
    end

    def within(seconds)
        deadline = Time.now + seconds
        until yield
            raise "not so after #{seconds} seconds" if Time.now > deadline

            sleep 5
        end
    end

    it 'is ready' do
        within(300) { @info[:vm].ssh('cat /etc/motd').stdout.include?('All set and ready to serve') }
    end

    it 'runs as its own user' do
        expect(on_vm('systemctl is-active dduct').stdout.strip).to eq('active')
        expect(on_vm('ps -o user= -p "$(systemctl show -p MainPID --value dduct)"').stdout.strip).to eq('dduct')
    end

    it 'is healthy' do
        expect(on_vm("curl -fsS http://127.0.0.1:#{PORT}/healthz").stdout.strip).to eq('ok')
    end

    it 'has the values of the context' do
        configuration = on_vm('cat /etc/dduct/dduct.toml').stdout
        expect(configuration).to include("tcp_bind = \"0.0.0.0:#{PORT}\"")
        expect(configuration).to include('max_size = 2147483648')
        APP_CONTEXT_PARAMS[:ONEAPP_DDUCT_KEEP_HOSTS].split.each { |host| expect(configuration).to include("\"#{host}\"") }
    end

    it 'reports for root alone' do
        expect(on_vm('stat -c %a /etc/one-appliance/config').stdout.strip).to eq('600')
        report = on_vm('cat /etc/one-appliance/config').stdout
        expect(report).to match(%r{^proxy = http://\d+\.\d+\.\d+\.\d+:#{PORT}$})
        expect(report).to match(/^password = [A-Za-z0-9]{20}$/)
    end

    it 'asks for the password' do
        code = on_vm("curl -s -o /dev/null -w '%{http_code}' -x http://127.0.0.1:#{PORT} #{OBJECT}").stdout.strip
        expect(code).to eq('407')
    end

    it 'keeps what it has fetched' do
        fetch = <<~SCRIPT
            password=$(sed -n 's/^password = //p' /etc/one-appliance/config)
            curl -fsS -o /dev/null -D - -x http://127.0.0.1:#{PORT} -U #{USER}:$password #{OBJECT} | grep -i '^cache-status'
        SCRIPT
        on_vm(fetch).expect_success
        expect(on_vm(fetch).stdout).to include('dduct; hit')
    end
end
